// All heavy work, off the page's thread: decoding, the model, encoding.
import * as ort from "./runtime/ort.wasm.bundle.min.mjs";
import { Model } from "./harmonize.js";

ort.env.wasm.wasmPaths = new URL("./runtime/", import.meta.url).href; // a relative one is not found
ort.env.wasm.numThreads = 1; // more need headers that static hosts seldom send
ort.env.logLevel = "error";

const read = async (name) => {
  const response = await fetch(new URL(`./model/${name}`, import.meta.url));
  if (!response.ok) throw new Error(`model/${name}: HTTP ${response.status}. Run \`make web\` first.`);
  return new Uint8Array(await response.arrayBuffer());
};
let opened = null;
const model = () => (opened ??= Model.open(ort, read));

const tasks = {
  async load() {
    const { description } = await model();
    return { name: description.model };
  },

  /** Decode a file to RGBA. Colours under transparent pixels survive where the browser has ImageDecoder. */
  async decode({ file }) {
    const bitmap = await createImageBitmap(file, { premultiplyAlpha: "none" }).catch(() => {
      throw new Error("This file is no picture that the browser reads. Open a PNG, JPEG or WebP.");
    });
    const { width, height } = bitmap;
    const context = new OffscreenCanvas(width, height).getContext("2d", { willReadFrequently: true });
    context.drawImage(bitmap, 0, 0);
    let { data } = context.getImageData(0, 0, width, height);
    let transparent = false;
    for (let i = 3; i < data.length && !transparent; i += 4) transparent = data[i] < 255;
    if (transparent && "ImageDecoder" in self && (await ImageDecoder.isTypeSupported(file.type))) {
      const decoder = new ImageDecoder({ data: file.stream(), type: file.type, premultiplyAlpha: "none" });
      const { image } = await decoder.decode();
      const exact = new Uint8ClampedArray(4 * width * height);
      if (image.displayWidth === width && image.displayHeight === height) {
        await image.copyTo(exact, { format: "RGBA" });
        data = exact;
      }
      image.close();
    }
    return { width, height, pixels: data.buffer, transparent };
  },

  async harmonize({ pixels, mask, width, height }) {
    const start = performance.now();
    const harmonized = await (await model()).harmonize(
      new Uint8ClampedArray(pixels), new Float32Array(mask), width, height);
    return { harmonized: harmonized.buffer, milliseconds: performance.now() - start };
  },

  async encode({ pixels, width, height }) {
    const canvas = new OffscreenCanvas(width, height);
    canvas.getContext("2d").putImageData(new ImageData(new Uint8ClampedArray(pixels), width, height), 0, 0);
    return { blob: await canvas.convertToBlob({ type: "image/png" }) };
  },
};

self.onmessage = async ({ data: { id, task, ...input } }) => {
  try {
    const output = await tasks[task](input);
    self.postMessage({ id, output }, Object.values(output).filter((value) => value instanceof ArrayBuffer));
  } catch (error) {
    self.postMessage({ id, error: error.message || String(error) });
  }
};
