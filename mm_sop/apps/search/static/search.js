'use strict';

// The URL's fragment says what is shown, so that the browser's back and forward buttons work:
// "#image-12", "#upload-0", "#name-cat", or nothing for random images.
const byId = (id) => document.getElementById(id);
const uploads = [];
let maxUpload = Infinity;
let latest = 0;

async function request(url, options) {
  const response = await fetch(url, options);
  const content = await response.json();
  if (!response.ok) throw new Error(content.error);
  return content;
}

async function show() {
  const turn = ++latest;
  const [, kind, value] = /^#(image|upload|name)-(.*)$/.exec(location.hash) ?? [];
  say('Searching …');
  try {
    const view = await VIEWS[kind ?? 'name'](decodeURIComponent(value ?? ''), byId('count').value);
    if (turn === latest) render(view);
  } catch (error) {
    if (turn === latest) say(error instanceof TypeError ? 'The server does not answer. Is it still running?' : error.message, true);
  }
}

const VIEWS = {
  async image(number, count) {
    const found = await request(`/search?image=${number}&count=${count}`);
    return matches(found, found.name, `/thumbnail/${number}`);
  },

  async upload(number, count) {
    const file = uploads[number];
    if (!file) throw new Error('The uploaded image is no longer here: choose it again.');
    const found = await request(`/search?count=${count}`, { method: 'POST', body: file });
    return matches(found, file.name || 'the pasted image', URL.createObjectURL(file));
  },

  async name(text, count) {
    const found = await request(`/images?name=${encodeURIComponent(text)}&count=${count}`);
    const title = text ? `Images with “${text}” in their name` : 'Random images of the folder';
    const shown = found.images.length;
    const status = text ? `${format(shown)} of ${format(found.total)} are shown.` : 'Choose one to find similar images.';
    return { title, status, images: found.images };
  },
};

function matches(found, name, preview) {
  const milliseconds = Math.max(1, Math.round(1000 * found.seconds));
  const status = `${found.matches.length} best matches, found in ${milliseconds} ms. Scores are cosine similarities; 1 means equal.`;
  return { title: `Images similar to ${name}`, status, images: found.matches, preview };
}

function render({ title, status, images, preview }) {
  byId('title').textContent = title;
  byId('preview').hidden = !preview;
  if (preview) byId('preview').src = preview;
  const hadFocus = byId('results').contains(document.activeElement);
  byId('results').replaceChildren(...images.map(tile));
  if (hadFocus) byId('title').focus({ preventScroll: true });
  if (preview) scrollTo({ top: 0 });
  say(status);
}

function tile({ number, name, score }) {
  const image = element('img', { src: `/thumbnail/${number}`, alt: '', loading: 'lazy', width: 256, height: 256 });
  const button = element('button', { type: 'button', className: 'tile', title: name }, image);
  const shown = score?.toFixed(3);
  button.setAttribute('aria-label', `Find images similar to ${name}${shown ? `, score ${shown}` : ''}`);
  button.addEventListener('click', () => go(`image-${number}`));
  const link = element('a', { href: `/image/${number}`, target: '_blank', rel: 'noopener', title: `Open ${name}` }, name.split('/').pop());
  const caption = element('div', { className: 'caption' }, link);
  if (shown) caption.prepend(element('span', { className: 'score' }, shown));
  return element('li', {}, button, caption);
}

function element(tag, properties, ...children) {
  const made = Object.assign(document.createElement(tag), properties);
  // Strings become text nodes, never markup.
  made.append(...children);
  return made;
}

function say(text, isAlert = false) {
  byId('status').textContent = text;
  byId('status').className = isAlert ? 'alert' : 'quiet';
}

function go(fragment) {
  if (location.hash === `#${fragment}`) show();
  else location.hash = fragment;
}

function upload(file) {
  if (!file) return;
  if (file.size > maxUpload) {
    say(`${file.name} is too large: at most ${Math.floor(maxUpload / 2 ** 20)} MiB are allowed.`, true);
    return;
  }
  go(`upload-${uploads.push(file) - 1}`);
}

function moveFocus(event) {
  const tiles = [...document.querySelectorAll('.tile')];
  const position = tiles.indexOf(document.activeElement);
  const columns = Math.max(0, tiles.findIndex((other) => other.offsetTop > tiles[0].offsetTop));
  const step = { ArrowLeft: -1, ArrowRight: 1, ArrowUp: -columns, ArrowDown: columns }[event.key];
  if (position < 0 || !step) return;
  event.preventDefault();
  tiles[position + step]?.focus();
}

function listen() {
  const drop = byId('drop');
  byId('file').addEventListener('change', (event) => { upload(event.target.files[0]); event.target.value = ''; });
  byId('pick').addEventListener('submit', (event) => {
    event.preventDefault();
    go(`name-${encodeURIComponent(byId('name').value.trim())}`);
  });
  byId('count').addEventListener('change', show);
  byId('results').addEventListener('keydown', moveFocus);
  document.addEventListener('paste', (event) => upload(event.clipboardData.files[0]));
  document.addEventListener('dragover', (event) => { event.preventDefault(); drop.classList.add('over'); });
  document.addEventListener('dragleave', (event) => { if (!event.relatedTarget) drop.classList.remove('over'); });
  document.addEventListener('drop', (event) => {
    event.preventDefault();
    drop.classList.remove('over');
    upload(event.dataTransfer.files[0]);
  });
  addEventListener('hashchange', show);
}

async function start() {
  listen();
  show();
  const index = await request('/index');
  maxUpload = index.max_upload;
  const broken = index.unreadable ? `, ${format(index.unreadable)} cannot be read` : '';
  byId('index').textContent = `${format(index.images)} images in “${index.folder}”${broken} · ${index.encoder}`;
}

const format = (number) => number.toLocaleString('en');

start();
