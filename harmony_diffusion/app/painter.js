// Drawing board for masks. The server sends a picture or a mask as JSON in `value`; the page answers with what
// is drawn, as PNG data URLs of the picture's size on the board.
const board = element.querySelector('.hd-board'), context = board.getContext('2d');
const note = element.querySelector('.hd-note'), frame = element.querySelector('.hd-frame');
const hint = note.textContent;
const COLORS = {mask: '#ff3b30', inside: '#34c759', outside: '#0a84ff', reference: '#ffd60a'};
const layers = {}, used = {};
// `base` is the number of the mask from the server that the drawing began with.
let picture = null, tool = 'mask', box = null, edited = false, base = null, history = [], stroke = null;

function layer(name) {
  if (!layers[name]) {
    layers[name] = document.createElement('canvas');
    layers[name].width = board.width;
    layers[name].height = board.height;
  }
  return layers[name];
}

function draw() {
  context.clearRect(0, 0, board.width, board.height);
  if (!picture) return;
  context.drawImage(picture, 0, 0, board.width, board.height);
  context.globalAlpha = 0.55;
  for (const name of Object.keys(COLORS)) if (used[name]) context.drawImage(tinted(name), 0, 0);
  context.globalAlpha = 1;
  if (box) {
    const [x0, y0, x1, y1] = box;
    context.lineWidth = Math.max(2, board.width / 400);
    for (const [color, dash] of [['#000', []], ['#fff', [8, 8]]]) {
      context.strokeStyle = color;
      context.setLineDash(dash);
      context.strokeRect(x0 * board.width, y0 * board.height, (x1 - x0) * board.width, (y1 - y0) * board.height);
    }
    context.setLineDash([]);
  }
}

const tint = document.createElement('canvas');
function tinted(name) {
  tint.width = board.width;
  tint.height = board.height;
  const brush = tint.getContext('2d');
  brush.drawImage(layers[name], 0, 0);
  brush.globalCompositeOperation = 'source-in';
  brush.fillStyle = COLORS[name];
  brush.fillRect(0, 0, tint.width, tint.height);
  return tint;
}

function publish() {
  const drawn = {edited, box, base};
  for (const name of Object.keys(COLORS)) drawn[name] = used[name] ? layers[name].toDataURL('image/png') : null;
  props.value = JSON.stringify(drawn);
}

function remember() {
  const copies = {};
  for (const name of Object.keys(COLORS)) {
    if (!used[name]) continue;
    copies[name] = document.createElement('canvas');
    copies[name].width = board.width;
    copies[name].height = board.height;
    copies[name].getContext('2d').drawImage(layers[name], 0, 0);
  }
  history.push({copies, box, edited, base});
  if (history.length > 10) history.shift();
}

function undo() {
  const last = history.pop();
  if (!last) return;
  for (const name of Object.keys(COLORS)) {
    used[name] = Boolean(last.copies[name]);
    if (used[name]) layers[name] = last.copies[name];
  }
  ({box, edited, base} = last);
  draw();
  publish();
}

function empty() {
  for (const name of Object.keys(layers)) delete layers[name];
  for (const name of Object.keys(used)) used[name] = false;
  box = base = null;
}

function clear() {
  if (!picture) return;
  remember();
  empty();
  edited = true;
  draw();
  publish();
}

function point(event) {
  const place = board.getBoundingClientRect();
  return [(event.clientX - place.left) / place.width * board.width, (event.clientY - place.top) / place.height * board.height];
}

function line(name, from, to, erase) {
  const brush = layer(name).getContext('2d');
  brush.globalCompositeOperation = erase ? 'destination-out' : 'source-over';
  brush.strokeStyle = '#fff';
  brush.lineCap = brush.lineJoin = 'round';
  brush.lineWidth = Number(element.querySelector('.hd-size').value);
  brush.beginPath();
  brush.moveTo(...from);
  brush.lineTo(...to);
  brush.stroke();
}

board.addEventListener('pointerdown', event => {
  if (!picture || event.button) return;
  event.preventDefault();
  board.focus({preventScroll: true});
  board.setPointerCapture(event.pointerId);
  remember();
  stroke = {from: point(event), last: point(event)};
  move(event);
});

function move(event) {
  if (!stroke) return;
  const to = point(event);
  if (tool === 'box') {
    const clamp = value => Math.min(1, Math.max(0, value));
    const [x0, y0, x1, y1] = [stroke.from[0] / board.width, stroke.from[1] / board.height, to[0] / board.width, to[1] / board.height];
    box = [Math.min(x0, x1), Math.min(y0, y1), Math.max(x0, x1), Math.max(y0, y1)].map(clamp);
  } else if (tool === 'erase') {
    for (const name of Object.keys(COLORS)) if (used[name]) line(name, stroke.last, to, true);
    edited = true;
  } else {
    line(tool, stroke.last, to, false);
    used[tool] = true;
    edited = edited || tool === 'mask';
  }
  stroke.last = to;
  draw();
}

board.addEventListener('pointermove', event => {
  if (!stroke) return;
  for (const part of event.getCoalescedEvents?.() ?? [event]) move(part);
});
for (const name of ['pointerup', 'pointercancel']) board.addEventListener(name, () => {
  if (!stroke) return;
  stroke = null;
  publish();
});

const tools = [...element.querySelectorAll('[data-tool]')];
for (const button of tools) {
  button.addEventListener('click', () => {
    tool = button.dataset.tool;
    for (const other of tools) other.setAttribute('aria-checked', String(other === button));
  });
}
element.querySelector('.hd-undo').addEventListener('click', undo);
element.querySelector('.hd-clear').addEventListener('click', clear);
element.querySelector('.hd-zoom').addEventListener('input', event => {
  board.style.width = 100 * Number(event.target.value) + '%';
});
board.addEventListener('keydown', event => {
  if ((event.ctrlKey || event.metaKey) && event.key === 'z') {
    event.preventDefault();
    undo();
  }
});

function load(url) {
  return new Promise((done, failed) => {
    const image = new Image();
    image.onload = () => done(image);
    image.onerror = failed;
    image.src = url;
  });
}

function start(image, width, height) {
  picture = image;
  board.width = width;
  board.height = height;
  empty();
  stroke = null;
  history = [];
  edited = false;
  if (image) frame.dataset.ready = 'true';
  else delete frame.dataset.ready;
}

async function receive(text) {
  if (typeof text !== 'string' || !text) return;
  const message = JSON.parse(text);
  if (message.removed) {
    start(null, 640, 400);
    note.textContent = hint;
  }
  if (message.picture) {
    start(await load(message.picture), message.width, message.height);
    note.textContent = message.full.join(' × ') + ' pixels. Paint on the object; the rest stays as it is.';
  }
  if (message.mask !== undefined) {
    if (!message.picture) remember();
    delete layers.mask;
    used.mask = Boolean(message.mask);
    base = message.base ?? null;
    if (message.mask) layer('mask').getContext('2d').drawImage(await load(message.mask), 0, 0);
    edited = false;
  }
  if (message.removed || message.picture || message.mask !== undefined) {
    draw();
    publish();
  }
}

// Messages are handled one after another, although a picture takes time to load.
let turn = Promise.resolve();
function next() {
  const text = props.value;
  turn = turn.then(() => receive(text)).catch(console.error);
}
watch('value', next);
next();
