// Small helpers over the document. Text is only ever set as text, so nothing from a server can become markup.

export const $ = (selector, inside = document) => inside.querySelector(selector);
export const $$ = (selector, inside = document) => [...inside.querySelectorAll(selector)];
const SVG = 'http://www.w3.org/2000/svg';
const SHAPES = new Set(['svg', 'path', 'line', 'circle', 'rect', 'polyline', 'polygon', 'g']);

const ICONS = {
  check: 'M5 12.5l4.5 4.5L19 7.5', doubt: 'M12 4.5 21 20H3zM12 10v4.5M12 17.3v.2', stop: 'M7 7l10 10M17 7 7 17',
  positive: 'M12 3.5a8.5 8.5 0 1 0 0 17 8.5 8.5 0 0 0 0-17M12 8v4.5M12 15.8v.2', negative: 'M5 12.5l4.5 4.5L19 7.5',
  inconclusive: 'M4 9c3-4 5 4 8 0s5 4 8 0M4 15c3-4 5 4 8 0s5 4 8 0', error: 'M7 7l10 10M17 7 7 17',
};

// make('p', {class: 'quiet', onclick: f}, 'text', child, ...): an element; null and false children are left out.
export function make(tag, facts = {}, ...children) {
  const element = SHAPES.has(tag) ? document.createElementNS(SVG, tag) : document.createElement(tag);
  for (const [name, value] of Object.entries(facts)) {
    if (value === null || value === undefined || value === false) continue;
    if (name.startsWith('on')) element.addEventListener(name.slice(2), value);
    else if (name === 'vars') for (const [key, one] of Object.entries(value)) element.style.setProperty(key, one);
    else element.setAttribute(name, value === true ? '' : value);
  }
  element.append(...children.flat().filter((child) => child !== null && child !== undefined && child !== false));
  return element;
}

export const icon = (name) => make('svg', { viewBox: '0 0 24 24', 'aria-hidden': 'true' }, make('path', { d: ICONS[name] }));

// Tell a screen reader. Emptied first, so that the same sentence is read again.
export function say(text) {
  const region = $('#say');
  region.textContent = '';
  setTimeout(() => { region.textContent = text; }, 60);
}

// Show or clear a sentence of alarm inside `place`; detail: what the server wrote, small.
export function complain(place, text, detail = '') {
  const box = $('.wrong', place) || place;
  box.hidden = !text;
  box.replaceChildren(text || '', ...(detail ? [make('small', {}, detail)] : []));
}

// Replace what is inside; absent children are left out.
export function fill(place, ...children) { place.replaceChildren(...children.flat().filter((child) => child !== null && child !== undefined && child !== false)); }

export function show(element, yes = true) { element.hidden = !yes; }

// Draw on a canvas at the screen's own sharpness: (context, width, height) in CSS pixels.
export function draw(canvas, paint) {
  const ratio = window.devicePixelRatio || 1;
  const { width, height } = canvas.getBoundingClientRect();
  canvas.width = Math.max(1, Math.round(width * ratio));
  canvas.height = Math.max(1, Math.round(height * ratio));
  const context = canvas.getContext('2d');
  context.scale(ratio, ratio);
  paint(context, width, height);
}
