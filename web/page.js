// The page: files in, a mask from a file, alpha or a brush, one result at any strength, a PNG out.
const $ = (id) => document.getElementById(id);
const worker = new Worker(new URL("./worker.js", import.meta.url), { type: "module" });
const waiting = new Map();
let lastId = 0;

worker.onmessage = ({ data: { id, output, error } }) => {
  const { resolve, reject } = waiting.get(id);
  waiting.delete(id);
  if (error !== undefined) reject(new Error(error));
  else resolve(output);
};
// An absent file of the runtime gives an event without a message.
worker.onerror = (event) => {
  const error = new Error(event.message ?? "The runtime cannot be loaded: run `make web` first.");
  for (const { reject } of waiting.values()) reject(error);
  waiting.clear();
};

function ask(task, input = {}, transfer = []) {
  return new Promise((resolve, reject) => {
    waiting.set(++lastId, { resolve, reject });
    worker.postMessage({ id: lastId, task, ...input }, transfer);
  });
}

const state = { width: 0, height: 0, background: null, pixels: null, mask: null, harmonized: null, cutout: null };
let busy = false;
let version = 0; // of the input: a result of an earlier one is not shown
const view = $("view").getContext("2d", { willReadFrequently: true });
const overlay = $("overlay").getContext("2d", { willReadFrequently: true });

function say(text) {
  $("status").textContent = text;
}

/** Run what an input asks for; show what goes wrong. */
const handled = (action) => async (event) => {
  try {
    await action(event);
  } catch (error) {
    say(error.message);
  }
};

async function openPicture(file) {
  const { width, height, pixels, transparent } = await ask("decode", { file });
  const data = new Uint8ClampedArray(pixels);
  const mask = new Float32Array(width * height);
  if (transparent) for (let i = 0; i < mask.length; i++) mask[i] = data[4 * i + 3] / 255;
  for (let i = 3; i < data.length; i += 4) data[i] = 255;
  Object.assign(state, { width, height, background: data, pixels: data, mask, cutout: null });
  for (const context of [view, overlay]) Object.assign(context.canvas, { width, height });
  for (const id of ["mask", "cutout", "clear"]) $(id).disabled = false;
  $("scale").disabled = true;
  changed();
  say(transparent ? "The transparency of the picture is its mask." : "Paint the foreground, or open a mask.");
}

async function openMask(file) {
  const { width, height, pixels } = await ask("decode", { file });
  if (width !== state.width || height !== state.height) {
    throw new Error(`The mask is ${width} x ${height} pixels, the picture ${state.width} x ${state.height}.`);
  }
  const data = new Uint8ClampedArray(pixels);
  // Grey of sRGB values (ITU-R BT.601), as image libraries compute it.
  for (let i = 0; i < state.mask.length; i++) {
    const grey = 0.299 * data[4 * i] + 0.587 * data[4 * i + 1] + 0.114 * data[4 * i + 2];
    state.mask[i] = Math.round(grey) / 255;
  }
  changed();
  say("Ready.");
}

async function openCutout(file) {
  const { width, height, pixels, transparent } = await ask("decode", { file });
  if (!transparent) throw new Error("A cut-out needs transparency: open a PNG or WebP with an alpha channel.");
  const image = await createImageBitmap(new ImageData(new Uint8ClampedArray(pixels), width, height));
  state.cutout = { image, x: (state.width - width) / 2, y: (state.height - height) / 2 };
  $("scale").disabled = false;
  paste();
  say("Drag the cut-out to its place.");
}

/** Put the cut-out on the background; its alpha is the mask. */
function paste() {
  const { width, height, cutout } = state, scale = $("scale").value / 100;
  const size = [cutout.image.width * scale, cutout.image.height * scale];
  const canvas = new OffscreenCanvas(width, height).getContext("2d", { willReadFrequently: true });
  canvas.drawImage(cutout.image, cutout.x, cutout.y, ...size);
  const front = canvas.getImageData(0, 0, width, height).data;
  state.pixels = new Uint8ClampedArray(state.background);
  for (let i = 0; i < state.mask.length; i++) {
    const alpha = (state.mask[i] = front[4 * i + 3] / 255);
    if (alpha === 0) continue;
    for (let c = 0; c < 3; c++) {
      state.pixels[4 * i + c] = alpha * front[4 * i + c] + (1 - alpha) * state.background[4 * i + c];
    }
  }
  changed();
}

/** The input is another one: the result is gone. */
function changed() {
  version++;
  state.harmonized = null;
  const { width, height, mask } = state;
  const marked = new ImageData(width, height);
  for (let i = 0; i < mask.length; i++) {
    marked.data[4 * i] = 255;
    marked.data[4 * i + 3] = 255 * mask[i];
  }
  overlay.putImageData(marked, 0, 0);
  show();
}

function show() {
  const done = state.harmonized !== null;
  for (const id of ["strength", "before", "download"]) $(id).disabled = !done;
  $("run").disabled = !state.pixels || busy;
  $("overlay").classList.toggle("hidden", done);
  if (state.pixels) view.putImageData(new ImageData(visible(), state.width, state.height), 0, 0);
}

/** What is to be seen: the input, or the result at the chosen strength. */
function visible() {
  const { pixels, harmonized } = state;
  if (!harmonized || $("before").getAttribute("aria-pressed") === "true") return pixels;
  return atStrength();
}

function atStrength() {
  const { pixels, harmonized } = state, strength = $("strength").value / 100;
  if (strength === 1) return harmonized;
  const result = new Uint8ClampedArray(pixels);
  for (let i = 0; i < result.length; i++) result[i] = pixels[i] + strength * (harmonized[i] - pixels[i]);
  return result;
}

async function run() {
  const { pixels, mask, width, height } = state;
  if (!mask.some((value) => value > 0)) throw new Error("The mask is empty: mark the foreground.");
  if (!mask.some((value) => value < 1)) throw new Error("The mask covers the whole picture: mark the object only.");
  const started = version;
  busy = true;
  show();
  say("Harmonizing …");
  const input = { pixels: pixels.slice().buffer, mask: mask.slice().buffer, width, height };
  try {
    const { harmonized, milliseconds } = await ask("harmonize", input, [input.pixels, input.mask]);
    if (started === version) state.harmonized = new Uint8ClampedArray(harmonized);
    say(started === version ? `Done in ${(milliseconds / 1000).toFixed(1)} s.` : "Changed meanwhile: harmonize again.");
  } finally {
    busy = false;
    show();
  }
}

async function download() {
  const pixels = atStrength().slice().buffer;
  const { blob } = await ask("encode", { pixels, width: state.width, height: state.height }, [pixels]);
  const link = document.createElement("a");
  link.href = URL.createObjectURL(blob);
  link.download = "harmonized.png";
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10000);
}

// Brush, or the cut-out dragged.
let pointer = null;
function position(event) {
  const box = $("overlay").getBoundingClientRect();
  const factor = state.width / box.width;
  return [(event.clientX - box.left) * factor, (event.clientY - box.top) * factor];
}

function dab([x, y]) {
  const radius = $("brush").value / 2, value = $("erase").checked ? 0 : 1, { width, height, mask } = state;
  for (let row = Math.max(0, Math.floor(y - radius)); row < Math.min(height, y + radius); row++) {
    for (let column = Math.max(0, Math.floor(x - radius)); column < Math.min(width, x + radius); column++) {
      if (Math.hypot(column + 0.5 - x, row + 0.5 - y) <= radius) mask[row * width + column] = value;
    }
  }
}

$("overlay").addEventListener("pointerdown", (event) => {
  if (!state.pixels) return;
  $("overlay").setPointerCapture(event.pointerId);
  pointer = position(event);
  if (!state.cutout) dab(pointer), changed();
});
$("overlay").addEventListener("pointermove", (event) => {
  if (!pointer) return;
  const [x, y] = position(event), [beforeX, beforeY] = pointer;
  pointer = [x, y];
  if (state.cutout) {
    state.cutout.x += x - beforeX;
    state.cutout.y += y - beforeY;
    paste();
    return;
  }
  const steps = Math.max(1, Math.ceil(Math.hypot(x - beforeX, y - beforeY) / ($("brush").value / 4)));
  for (let k = 1; k <= steps; k++) dab([beforeX + ((x - beforeX) * k) / steps, beforeY + ((y - beforeY) * k) / steps]);
  changed();
});
$("overlay").addEventListener("pointerup", () => (pointer = null));

for (const [id, open] of [["picture", openPicture], ["mask", openMask], ["cutout", openCutout]]) {
  $(id).addEventListener("change", handled(async (event) => {
    if (event.target.files.length) await open(event.target.files[0]);
  }));
}
$("scale").addEventListener("input", handled(paste));
$("clear").addEventListener("click", () => {
  state.mask.fill(0);
  state.cutout = null;
  state.pixels = state.background;
  changed();
});
$("run").addEventListener("click", handled(run));
$("strength").addEventListener("input", show);
$("before").addEventListener("click", () => {
  const pressed = $("before").getAttribute("aria-pressed") !== "true";
  $("before").setAttribute("aria-pressed", String(pressed));
  $("before").textContent = pressed ? "Show after" : "Show before";
  show();
});
$("download").addEventListener("click", handled(download));

ask("load").then(
  async ({ name }) => {
    if ("serviceWorker" in navigator && window.isSecureContext) {
      await navigator.serviceWorker.register("sw.js");
      await navigator.serviceWorker.ready;
    }
    say(`Model ${name} is ready. Open a picture.`);
    document.documentElement.dataset.ready = "true";
  },
  (error) => say(error.message),
);
