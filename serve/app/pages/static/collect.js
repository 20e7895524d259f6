// The collector's page: consent, who, what, a recording; below it the day so far.
import { call, post } from './api.js';
import { Days } from './days.js';
import { $, complain, say, show } from './dom.js';
import { Recorder } from './recorder.js';
import { start } from './session.js';
import { explain, t } from './words.js';

const REMEMBERED = ['site', 'device']; // the same all day; nothing about a person
const form = $('#collect');
let recording = null;
let sending = false;
let days;

start('collector', async () => {
  const recorder = new Recorder($('#recorder'));
  recorder.addEventListener('recording', ({ detail }) => { recording = detail; check(); });
  form.addEventListener('input', check);
  form.addEventListener('submit', (event) => { event.preventDefault(); submit(recorder); });
  form.elements.sentence.addEventListener('change', sentence);
  for (const name of REMEMBERED) form.elements[name].value = localStorage.getItem(`spira-${name}`) || '';
  addEventListener('beforeunload', (event) => { if (recording) event.preventDefault(); });
  $('#withdraw').addEventListener('submit', (event) => { event.preventDefault(); withdraw(event.target); });
  sentence();
  check();
  days = new Days();
  await days.load();
});

const sentence = () => { $('#sentence').textContent = t(`sentences.${form.elements.sentence.value}.text`); };

// What is still missing is said beside the button, which opens once nothing is.
function check() {
  const { consent, subject, label } = form.elements;
  const missing = [!consent.checked && 'need_consent', !subject.value.trim() && 'need_subject', !(recording && !recording.judged.stop) && 'need_recording'].filter(Boolean);
  $('#missing').textContent = missing.length ? t('collect.missing', { what: missing.map((key) => t(`collect.${key}`)).join(', ') }) : '';
  $('button[type=submit]', form).disabled = sending || missing.length > 0;
  show($('#cause'), label.value === 'patient');
}

function facts() {
  const found = { collected_at: new Date().toISOString() };
  for (const name of ['subject', 'sex', 'site', 'device', 'label', 'sentence', 'cause']) {
    const value = form.elements[name].value.trim();
    if (value && !(name === 'cause' && form.elements.label.value !== 'patient')) found[name] = value;
  }
  for (const name of ['age', 'spo2', 'dyspnoea']) if (form.elements[name].value !== '') found[name] = Number(form.elements[name].value);
  found.consent = form.elements.consent.checked;
  found.consent_training = form.elements.consent_training.checked;
  return found;
}

async function submit(recorder) {
  const wrong = $('#collect-wrong');
  complain(wrong, '');
  for (const field of form.elements) field.removeAttribute('aria-invalid');
  const bad = [...form.elements].find((field) => ['age', 'spo2'].includes(field.name) && !field.checkValidity());
  if (bad) {
    bad.setAttribute('aria-invalid', 'true');
    complain(wrong, t(bad.name === 'age' ? 'facts.age_range' : 'facts.spo2_range'));
    bad.focus();
    return;
  }
  if (sending) return;
  sending = true;
  check();
  const button = $('button[type=submit]', form);
  button.textContent = t('collect.sending');
  const body = new FormData();
  body.append('facts', JSON.stringify(facts()));
  body.append('recording', new Blob([recording.bytes], { type: recording.type }), 'recording');
  try {
    const { body: receipt } = await call('POST', '/collect/v1/recordings', { body, seconds: 120 });
    for (const name of REMEMBERED) localStorage.setItem(`spira-${name}`, form.elements[name].value.trim());
    const kept = [...REMEMBERED, 'sentence'].map((name) => [name, form.elements[name].value]);
    form.reset(); // the next person consents anew
    for (const [name, value] of kept) form.elements[name].value = value;
    sending = false;
    recorder.clear();
    days.tell(t(receipt.again ? 'collect.again' : 'collect.sent', { id: receipt.id.slice(0, 8) }));
    await days.load(receipt.day);
    form.elements.consent.focus();
  } catch (failure) {
    const [sentenceOfIt, detail] = explain(failure);
    complain(wrong, failure.offline ? t('collect.failed') : sentenceOfIt, detail);
  } finally {
    sending = false;
    button.textContent = t('collect.send');
    check();
  }
}

async function withdraw(place) {
  const subject = place.elements.subject.value.trim();
  complain(place, '');
  if (!subject) { place.elements.subject.focus(); return; }
  const dialog = $('#withdrawing');
  const tick = $('[name=sure]', dialog);
  const yes = $('[value=yes]', dialog);
  tick.checked = false;
  yes.disabled = true;
  tick.onchange = () => { yes.disabled = !tick.checked; };
  dialog.returnValue = '';
  dialog.onclose = async () => {
    if (dialog.returnValue !== 'yes') return;
    try {
      const left = await post('/collect/v1/subjects/withdraw', { subject });
      if (left.recordings === 0) { complain(place, t('collect.withdrawn_none')); return; }
      place.reset();
      days.tell(t('collect.withdrawn_done'));
      await days.load();
    } catch (failure) {
      complain(place, ...explain(failure));
      say(t('errors.unknown'));
    }
  };
  dialog.showModal();
}
