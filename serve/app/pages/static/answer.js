// An answer, or why there is none, as a nurse reads it.
import { post } from './api.js';
import { curve, scale } from './charts.js';
import { $, complain, fill, icon, make, say } from './dom.js';
import { spectrogram } from './spectrogram.js';
import { chance, explain, has, number, t, when } from './words.js';

// record: of GET /v1/inferences/{id}. sound: {samples, rate} where this device still has it.
export function showAnswer(place, record, sound, changed) {
  place.hidden = false;
  if (record.state === 'error') failed(place, record);
  else answered(place, record, sound, changed);
  const title = $('#answer-title', place);
  title.focus({ preventScroll: true });
  place.scrollIntoView({ block: 'start', behavior: matchMedia('(prefers-reduced-motion: reduce)').matches ? 'auto' : 'smooth' });
  say(title.textContent);
}

function heading(kind, badge, title, ...more) {
  return make('div', { class: 'verdict' }, make('span', { class: 'badge' }, icon(kind), badge),
    make('h2', { id: 'answer-title', tabindex: '-1' }, title), ...more);
}

function failed(place, record) {
  place.dataset.kind = 'error';
  const [sentence, detail] = explain({ error: record.error, detail: record.detail, request_id: record.id });
  place.replaceChildren(heading('error', t('history.error'), t('nurse.refused'), make('p', {}, sentence)),
    make('p', { class: 'quiet small' }, detail), button('nurse.record_again'));
}

const button = (key) => make('button', { type: 'button', class: 'main next' }, t(key));

function answered(place, record, sound, changed) {
  const { answer } = record;
  const probability = answer.calibrated ?? answer.probability;
  const kind = ['positive', 'negative'].includes(answer.diagnosis) ? answer.diagnosis : 'inconclusive';
  place.dataset.kind = kind;
  fill(place,
    heading(kind, strength(kind, probability), t(`answer.${kind}`)),
    scale(probability, decided(answer)),
    make('p', {}, t(kind === 'inconclusive' ? 'answer.means_inconclusive' : 'answer.means', { n: chance(probability) })),
    cautions(answer.warnings || []),
    heard(answer, sound),
    make('section', { class: 'not', 'aria-labelledby': 'not-title' }, make('h3', { id: 'not-title' }, t('answer.not_title')),
      make('ul', {}, t('answer.not').map((text) => make('li', {}, text)))),
    button('nurse.again'),
    later(record, changed),
    details(record),
  );
  const canvas = $('canvas', place);
  if (canvas) spectrogram(canvas, sound);
}

// The words go by the distance from even odds, and only outside of the inconclusive band.
function strength(kind, probability) {
  if (kind === 'inconclusive') return t('answer.undecided');
  const sure = Math.abs(probability - 0.5);
  return t(`answer.strength.${kind}`)[sure >= 0.4 ? 2 : sure >= 0.2 ? 1 : 0];
}

function decided({ decision }) {
  return decision && Number.isFinite(decision.threshold) && Number.isFinite(decision.band) ? decision : null;
}

function cautions(warnings) {
  if (!warnings.length) return null;
  const sentence = (word) => (has(`answer.warning.${word}`) ? t(`answer.warning.${word}`) : t('answer.warning.other', { word }));
  return make('div', { class: 'cautions' }, make('h3', {}, t('answer.warnings')), make('ul', {}, warnings.map((word) => make('li', {}, sentence(word)))));
}

function heard(answer, sound) {
  const values = answer.windows || [];
  const seconds = sound ? sound.samples.length / sound.rate : answer.heard?.seconds || values.length + 3;
  const size = answer.window_seconds || 4;
  if (!values.length && !sound) return null;
  const drawn = values.length ? curve(values, seconds, size, answer.step_seconds || 1) : null;
  const axis = (...labels) => make('div', { class: 'y', 'aria-hidden': 'true' }, labels.map((label) => make('span', {}, label)));
  return make('section', { class: 'heard', 'aria-labelledby': 'heard-title' },
    make('h3', { id: 'heard-title' }, t('answer.sound')),
    sound && make('p', { class: 'small' }, t('answer.frequency')),
    sound ? make('div', { class: 'plot' }, axis('8', '4', '0'), make('canvas', { role: 'img', 'aria-label': t('answer.spectrogram') }))
      : make('p', { class: 'quiet small' }, t('answer.no_audio')),
    drawn && make('p', { class: 'small' }, t('answer.windows')),
    drawn && make('div', { class: 'plot' }, axis('100', '50', '0'), drawn.picture),
    make('div', { class: 'axis', 'aria-hidden': 'true' }, make('span', {}, '0 s'), make('span', {}, `${number(seconds / 2, 1)} s`), make('span', {}, `${number(seconds, 1)} s`)),
    drawn && make('p', { class: 'quiet small' }, t('answer.windows_note', { n: number(size) })),
    drawn && drawn.table);
}

function details(record) {
  const { answer } = record;
  const rows = [['version', answer.model?.version], ['request', record.id], ['when', when(record.created_at || '')], ['raw', `${number(answer.probability * 100, 1)}%`]];
  if (answer.heard) {
    rows.push(['length', `${number(answer.heard.seconds, 1)} s`], ['level', `${number(answer.heard.rms_dbfs, 1)} dBFS`],
      ['noise', `${number(answer.heard.snr_db, 1)} dB`], ['bandwidth', `${number(answer.heard.bandwidth_hz / 1000, 1)} kHz`]);
  }
  return make('details', {}, make('summary', {}, t('answer.details')),
    make('dl', { class: 'facts' }, rows.filter(([, value]) => value).flatMap(([key, value]) => [make('dt', {}, t(`answer.${key}`)), make('dd', {}, value)])),
    make('button', { type: 'button', class: 'plain', onclick: async () => { await navigator.clipboard?.writeText(record.id); say(t('answer.copied')); } }, t('answer.copy')));
}

// What turned out later; it can be corrected, and the server keeps every change.
function later(record, changed) {
  const place = make('section', { class: 'later', 'aria-labelledby': 'later-title' });
  const render = (editing) => {
    const title = make('h3', { id: 'later-title' }, t('later.title'));
    if (record.label && !editing) {
      place.replaceChildren(title, make('p', { class: 'done' }, icon('check'), t(`later.${record.label}`)),
        make('div', {}, make('button', { type: 'button', class: 'plain', onclick: () => { render(true); $('input', place).focus(); } }, t('later.change'))));
      return;
    }
    const choice = (value, key) => make('label', {}, make('input', { type: 'radio', name: 'label', value }), make('span', {}, t(key)));
    const save = make('button', { type: 'submit', class: 'plain' }, t('later.save'));
    place.replaceChildren(title, make('p', { class: 'quiet small' }, t('later.lead')), make('form', { novalidate: true, onsubmit: store },
      make('fieldset', { class: 'choice' }, make('legend', {}, t('later.question')), choice('patient', 'later.yes'), choice('control', 'later.no')),
      make('label', {}, t('later.why'), make('input', { name: 'why', maxlength: 200, autocomplete: 'off', 'aria-describedby': 'later-hint' })),
      make('p', { class: 'quiet small', id: 'later-hint' }, t('later.no_names')),
      make('p', { class: 'wrong', role: 'alert', hidden: true }), save));
  };
  const store = async (event) => {
    event.preventDefault();
    const form = event.target;
    const save = $('button', form);
    const label = form.elements.label.value;
    if (!label) { complain(form, t('later.choose')); $('input', form).focus(); return; }
    if (save.disabled) return;
    save.disabled = true;
    try {
      await post(`/v1/inferences/${record.id}/label`, { label, why: form.elements.why.value.trim() });
      record.label = label;
      render(false);
      say(t('later.saved'));
      $('button', place).focus();
      changed(record);
    } catch (failure) {
      save.disabled = false;
      complain(form, ...explain(failure));
    }
  };
  render(false);
  return place;
}
