// Before and after over each other. Strength is the opacity of "after", which is the blend the server computes at
// download, so that moving the slider needs no request.
const find = name => element.querySelector('.hd-' + name);
const before = find('before'), after = find('after'), strength = find('strength'), wipe = find('wipe');
const hint = find('note').textContent;
let afters = [], choice = 0, filters = [], waiting = false, again = false;

function show() {
  const share = Number(strength.value);
  after.style.opacity = share;
  find('strength-text').textContent = share.toFixed(2);
  after.style.clipPath = 'inset(0 0 0 ' + wipe.value + '%)';
  find('split').style.left = wipe.value + '%';
  find('split').hidden = wipe.value === '0';
}

function publish() {
  props.value = JSON.stringify({strength: Number(strength.value), change: choice, filters: filters.map(filter => filter.value)});
}

strength.addEventListener('input', show);
strength.addEventListener('change', publish);
wipe.addEventListener('input', show);

function choose(one) {
  choice = one.change;
  after.src = afters[choice];
  strength.value = one.strength;
  show();
  publish();
}

function showChoices(choices) {
  const place = find('choices');
  place.replaceChildren();
  if (choices.length < 2) return;
  for (const one of choices) {
    const button = document.createElement('button'), text = document.createElement('span');
    const pair = document.createElement('span');
    button.type = 'button';
    pair.className = 'hd-thumbnail';
    for (const [url, opacity] of [[before.src, 1], [afters[one.change], one.strength]]) {
      const image = document.createElement('img');
      image.src = url;
      image.alt = '';
      image.style.opacity = opacity;
      pair.append(image);
    }
    text.textContent = one.label;
    button.append(pair, text);
    button.addEventListener('click', () => choose(one));
    place.append(button);
  }
}

function send() {
  publish();
  if (waiting) {
    again = true;
    return;
  }
  waiting = true;
  trigger('filters');
}

function showFilters() {
  const place = find('filters');
  place.replaceChildren();
  for (const filter of filters) {
    const label = document.createElement('label'), range = document.createElement('input');
    const text = document.createElement('output');
    Object.assign(range, {type: 'range', min: -1, max: 1, step: 0.01, value: filter.value});
    range.setAttribute('aria-label', filter.name);
    text.textContent = Number(filter.value).toFixed(2);
    range.addEventListener('input', () => {
      filter.value = Number(range.value);
      text.textContent = filter.value.toFixed(2);
      send();
    });
    label.append(filter.name + ' ', range, text);
    place.append(label);
  }
}

function clear() {
  afters = filters = [];
  for (const image of [before, after]) image.removeAttribute('src');
  find('pair').hidden = find('controls').hidden = true;
  find('note').textContent = hint;
  find('choices').replaceChildren();
  find('filters').replaceChildren();
}

function receive(text) {
  if (typeof text !== 'string' || !text) return;
  const message = JSON.parse(text);
  if (message.cleared) {
    clear();
  } else if (message.before) {
    before.src = message.before;
    afters = message.afters;
    choice = 0;
    after.src = afters[0];
    filters = message.filters;
    waiting = again = false;
    strength.value = 1;
    wipe.value = 0;
    find('pair').hidden = find('controls').hidden = false;
    find('note').textContent = message.note ?? '';
    showChoices(message.choices);
    showFilters();
    show();
    publish();
  } else if (message.after) {
    afters[0] = message.after;
    if (choice === 0) after.src = message.after;
    waiting = false;
    publish();
    if (again) {
      again = false;
      send();
    }
  }
}

watch('value', () => receive(props.value));
receive(props.value);
