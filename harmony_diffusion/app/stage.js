// Stage on which a cut-out is dragged and scaled. `value` from the server holds the pictures and their sizes in
// pixels; the page answers with the place in pixels of the background.
const ground = element.querySelector('.hd-ground'), note = element.querySelector('.hd-note');
const hint = note.textContent;
const background = element.querySelector('.hd-background'), cutout = element.querySelector('.hd-cutout');
const left = element.querySelector('.hd-x'), top = element.querySelector('.hd-y');
const scale = element.querySelector('.hd-scale'), percent = element.querySelector('.hd-percent');
let sizes = {}, place = {x: 0, y: 0, scale: 1}, drag = null;

function show() {
  const shown = Boolean(sizes.background);
  background.hidden = !shown;
  cutout.hidden = !(shown && sizes.cutout);
  if (cutout.hidden) return;
  const [width, height] = sizes.background, [ownWidth, ownHeight] = sizes.cutout;
  cutout.style.left = 100 * place.x / width + '%';
  cutout.style.top = 100 * place.y / height + '%';
  cutout.style.width = 100 * ownWidth * place.scale / width + '%';
  cutout.style.height = 100 * ownHeight * place.scale / height + '%';
  left.value = place.x;
  top.value = place.y;
  scale.value = Math.round(100 * place.scale);
  percent.textContent = Math.round(100 * place.scale) + ' %';
}

function publish() {
  props.value = JSON.stringify(place);
}

function change(next) {
  place = {...place, ...next};
  show();
}

function pixel() {
  return sizes.background[0] / ground.getBoundingClientRect().width;
}

ground.addEventListener('pointerdown', event => {
  if (cutout.hidden || event.button) return;
  event.preventDefault();
  ground.focus({preventScroll: true});
  if (event.target !== cutout) return;
  ground.setPointerCapture(event.pointerId);
  drag = {x: event.clientX, y: event.clientY, from: {...place}};
});
ground.addEventListener('pointermove', event => {
  if (!drag) return;
  const step = pixel();
  change({
    x: Math.round(drag.from.x + (event.clientX - drag.x) * step),
    y: Math.round(drag.from.y + (event.clientY - drag.y) * step),
  });
});
for (const name of ['pointerup', 'pointercancel']) ground.addEventListener(name, () => {
  if (drag) publish();
  drag = null;
});
ground.addEventListener('keydown', event => {
  const steps = {ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1]};
  const step = steps[event.key];
  if (!step || cutout.hidden) return;
  event.preventDefault();
  const far = event.shiftKey ? 10 : 1;
  change({x: place.x + far * step[0], y: place.y + far * step[1]});
  publish();
});
for (const [input, name] of [[left, 'x'], [top, 'y']]) input.addEventListener('change', () => {
  change({[name]: Math.round(Number(input.value)) || 0});
  publish();
});
scale.addEventListener('input', () => {
  if (!sizes.cutout) return;
  // The middle of the cut-out stays where it is.
  const next = Number(scale.value) / 100, [width, height] = sizes.cutout;
  change({
    x: Math.round(place.x + width * (place.scale - next) / 2),
    y: Math.round(place.y + height * (place.scale - next) / 2),
    scale: next,
  });
});
scale.addEventListener('change', publish);

function receive(text) {
  if (typeof text !== 'string' || !text) return;
  const message = JSON.parse(text);
  if (message.removed) {
    delete sizes[message.removed];
    drag = null;
  } else if (!message.background && !message.cutout) return;
  for (const [name, image] of [['background', background], ['cutout', cutout]]) if (message[name]) {
    image.src = message[name].url;
    sizes[name] = message[name].size;
  }
  if (sizes.background && sizes.cutout && message.center) {
    const [width, height] = sizes.background, [ownWidth, ownHeight] = sizes.cutout;
    const fits = Math.min(1, 0.6 * width / ownWidth, 0.6 * height / ownHeight);
    const chosen = Math.max(0.05, Math.floor(100 * fits) / 100);
    place = {x: Math.round((width - ownWidth * chosen) / 2), y: Math.round((height - ownHeight * chosen) / 2), scale: chosen};
  }
  note.textContent = sizes.background ? 'Background ' + sizes.background.join(' × ') + ' pixels. Drag, or use the arrow keys.' : hint;
  show();
  publish();
}

watch('value', () => receive(props.value));
receive(props.value);
