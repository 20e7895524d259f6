// The engineer's page: is the served model right, and what got no answer.
import { get, post } from './api.js';
import { interval } from './charts.js';
import { $, make, say } from './dom.js';
import { start } from './session.js';
import { explain, has, number, t, when } from './words.js';

const FEW = 30; // cases; below, an interval is too wide to compare versions by

start('engineer', async () => {
  $('#refresh').addEventListener('click', () => Promise.all([live(), dead()]));
  await Promise.all([live(), dead()]);
});

const trouble = (place, failure) => place.replaceChildren(make('p', { class: 'wrong', role: 'alert' }, ...explain(failure)));
const head = (...keys) => make('thead', {}, make('tr', {}, keys.map((key) => make('th', { scope: 'col' }, t(`engineer.${key}`)))));
const cell = (key, ...inside) => make('td', { 'data-name': t(`engineer.${key}`) }, ...inside);

async function live() {
  const place = $('#live');
  let found;
  try { found = await get('/v1/live'); } catch (failure) { trouble(place, failure); return; }
  const rows = Object.entries(found).map(([version, one]) => ({ version, ...one })).reverse(); // newest first
  if (!rows.length) { place.replaceChildren(make('p', { class: 'quiet' }, t('engineer.live_empty'))); return; }
  const share = (one) => (one ? [`${number(one.value * 100)}%`, make('small', {}, `${number(one.low * 100)}–${number(one.high * 100)}%`)] : ['–']);
  place.replaceChildren(make('div', { class: 'wide' }, make('table', { class: 'stack' }, head('version', 'n', 'accuracy', 'sensitivity', 'specificity'),
    make('tbody', {}, rows.map((row) => {
      const { accuracy } = row; // {value, low, high}; absent where no answer was conclusive
      const label = accuracy && t('engineer.plot', { version: row.version, n: number(accuracy.value * 100), low: number(accuracy.low * 100), high: number(accuracy.high * 100) });
      return make('tr', {}, make('th', { scope: 'row' }, make('code', {}, row.version)),
        cell('n', String(row.n), make('small', {}, [row.inconclusive && t('engineer.inconclusive', { n: row.inconclusive }), row.n < FEW && t('engineer.few')].filter(Boolean).join(', '))),
        cell('accuracy', make('span', { class: 'both' }, make('span', {}, share(accuracy)), accuracy && interval(accuracy, label))),
        cell('sensitivity', share(row.sensitivity)), cell('specificity', share(row.specificity)));
    })))));
}

async function dead() {
  const place = $('#dead');
  let found;
  try { found = await get('/v1/dead'); } catch (failure) { trouble(place, failure); return; }
  const rows = found;
  if (!rows.length) { place.replaceChildren(make('p', { class: 'quiet' }, t('engineer.dead_empty'))); return; }
  place.replaceChildren(make('div', { class: 'wide' }, make('table', { class: 'stack' }, head('when', 'reason', 'attempts', 'retry'),
    make('tbody', {}, rows.map(letter)))));
}

function letter(row) {
  const { id } = row;
  const retry = make('button', { type: 'button', class: 'plain tight', 'aria-label': t('engineer.retry_of', { id: id.slice(0, 8) }), onclick: async () => {
    retry.disabled = true;
    try {
      await post(`/v1/dead/${id}/retry`, {});
      say(t('engineer.retried', { id: id.slice(0, 8) }));
      await dead();
      $('#refresh').focus();
    } catch (failure) {
      retry.disabled = false;
      $('.problem', line)?.remove();
      retry.after(make('p', { class: 'wrong problem', role: 'alert' }, explain(failure)[0]));
    }
  } }, t('engineer.retry'));
  const sentence = has(`errors.${row.error}`) ? explain({ error: row.error })[0] : row.detail;
  const line = make('tr', {}, make('th', { scope: 'row' }, when(row.at), ' ', make('code', {}, id.slice(0, 8))),
    make('td', { class: 'full', 'data-name': t('engineer.reason') }, make('code', {}, row.error || ''), make('small', {}, sentence || row.detail || '')),
    cell('attempts', String(row.tries)), make('td', {}, retry));
  return line;
}
