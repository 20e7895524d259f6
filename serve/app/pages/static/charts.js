// The small pictures of an answer: where it lies on the scale, and how it went over the recording.
import { make } from './dom.js';
import { chance, number, t } from './words.js';

// decision: {threshold, band} of the model, where the answer has it.
export function scale(probability, decision) {
  const share = chance(probability);
  const at = Math.min(96, Math.max(4, probability * 100));
  let said = '';
  let band = null;
  if (decision) {
    const low = Math.max(0, decision.threshold - decision.band) * 100;
    const high = Math.min(1, decision.threshold + decision.band) * 100;
    said = t('answer.band', { low: Math.round(low), high: Math.round(high) });
    band = make('span', { class: 'band', vars: { left: `${low}%`, width: `${high - low}%` } });
  }
  return make('div', {},
    make('div', { class: 'scale', role: 'img', 'aria-label': t('answer.scale', { n: share, band: said }) },
      make('div', { class: 'track' }, band),
      make('div', { class: 'pin', vars: { left: `${at}%` } }, make('b', {}, `${share}%`), make('i'))),
    make('div', { class: 'ends', 'aria-hidden': 'true' }, make('span', {}, t('answer.left')), band && make('span', {}, t('answer.middle')), make('span', {}, t('answer.right'))),
    said && make('p', { class: 'quiet small' }, said));
}

// Where each window lies, in seconds: every `step` from 0 on, and one more that ends with the recording.
export function spans(count, seconds, size = 4, step = 1) {
  return Array.from({ length: count }, (_, i) => {
    const start = Math.min(i * step, Math.max(0, seconds - size));
    return [start, Math.min(seconds, start + size)];
  });
}

// values: P of each window. An SVG of 1000 x 100 units that stretches, and the same as a table.
export function curve(values, seconds, size, step) {
  const places = spans(values.length, seconds, size, step);
  const points = values.map((value, i) => [(1000 * (places[i][0] + places[i][1])) / 2 / seconds, 100 - 100 * value]);
  const path = points.map(([x, y], i) => `${i ? 'L' : 'M'}${x.toFixed(1)} ${y.toFixed(1)}`).join('');
  const first = points[0][0].toFixed(1);
  const last = points[points.length - 1][0].toFixed(1);
  const facts = { first: chance(values[0]), last: chance(values[values.length - 1]), low: chance(Math.min(...values)), high: chance(Math.max(...values)) };
  const line = (y, kind) => make('path', { class: kind, d: `M0 ${y}H1000` });
  const picture = make('svg', { viewBox: '0 0 1000 100', preserveAspectRatio: 'none', role: 'img', 'aria-label': t('answer.windows_alt', facts) },
    line(0, 'grid'), line(100, 'grid'), line(50, 'half'),
    points.length > 1 && make('path', { class: 'area', d: `${path}L${last} 100L${first} 100Z` }),
    points.length > 1 && make('path', { class: 'line', d: path }),
    points.map(([x, y]) => make('path', { class: 'dot', d: `M${x.toFixed(1)} ${y.toFixed(1)}h.01` })));
  const rows = values.map((value, i) => make('tr', {},
    make('th', { scope: 'row' }, `${number(places[i][0], 1)}–${number(places[i][1], 1)} s`), make('td', {}, `${chance(value)}%`)));
  const table = make('details', {}, make('summary', {}, t('answer.window_table')),
    make('table', {}, make('thead', {}, make('tr', {}, make('th', { scope: 'col' }, t('answer.from')), make('th', { scope: 'col' }, t('answer.value')))), make('tbody', {}, rows)));
  return { picture, table };
}

// A share with its interval, 0 to 100 %: {value, low, high} in 0..1.
export function interval({ value, low, high }, label) {
  const x = (share) => (4 + 172 * share).toFixed(1);
  return make('svg', { class: 'bars', viewBox: '0 0 180 34', role: 'img', 'aria-label': label },
    make('path', { class: 'grid', d: 'M4 17H176M4 11v12M90 11v12M176 11v12' }),
    make('path', { class: 'range', d: `M${x(low)} 17H${x(high)}` }),
    make('circle', { class: 'point', cx: x(value), cy: 17, r: 6 }));
}
