// The nurse's page: read, record, send, answer. What has been recorded survives a reload until the server has it.
import { follow, get } from './api.js';
import { showAnswer } from './answer.js';
import { $, complain, make, say, show } from './dom.js';
import { forget, keep, pause, send, waiting } from './queue.js';
import { Recorder } from './recorder.js';
import { nextLogin, onleave, start, who } from './session.js';
import { decode, newId } from './wav.js';
import { explain, has, language, percent, t, when } from './words.js';

let recorder;
let draft = null; // recorded, not sent: {id, account, bytes, type, facts, created, sending}
let sound = null; // of the recording whose answer is awaited or shown
let followed = () => {}; // ends what is being followed
const ask = $('#ask');
const form = $('#send');

start('clinician', async (person) => {
  recorder = new Recorder($('#recorder'));
  recorder.addEventListener('recording', recorded);
  form.addEventListener('submit', (event) => { event.preventDefault(); submit(); });
  form.addEventListener('input', () => { show($('#subject'), form.elements.consent_training.checked); saveFacts(); });
  $('#answer').addEventListener('click', (event) => { if (event.target.closest('.next')) restart(); });
  $('#retry').addEventListener('click', () => transmit(draft));
  $('#discard').addEventListener('click', async () => { await forget(draft.id); restart(); });
  onleave(async () => !(await waiting(person.name)).length || confirm(t('login.leave_waiting')));
  await Promise.all([history(), restore(person.name)]);
});

function stage(name) {
  show(ask, name === 'ask');
  show($('#progress'), name === 'progress');
  show($('#answer'), name === 'answer');
}

function recorded({ detail }) {
  show(form, Boolean(detail && !detail.judged.stop));
  complain(form, '');
  if (!detail) {
    if (draft && !draft.sending) { forget(draft.id); draft = null; }
    return;
  }
  sound = { samples: detail.samples, rate: detail.rate };
  $('button.main', form).textContent = t(detail.judged.doubts.length ? 'nurse.send_anyway' : 'nurse.send');
  if (detail.restored) return;
  draft = { id: newId(), account: who().name, bytes: detail.bytes, type: detail.type, created: new Date().toISOString(), language, facts: facts(), sending: false };
  if (!detail.judged.stop) keep(draft);
}

function facts() {
  const { age, sex, consent_training: consent, subject } = form.elements;
  const found = { consent_training: consent.checked };
  if (age.value) found.age = Number(age.value);
  if (sex.value) found.sex = sex.value;
  if (consent.checked && subject.value.trim()) found.subject = subject.value.trim();
  return found;
}

let saving = 0;
function saveFacts() { // what is typed lasts with the recording; the subject's number is kept only once it is sent
  clearTimeout(saving);
  saving = setTimeout(() => {
    if (!draft || draft.sending) return;
    draft.facts = facts();
    delete draft.facts.subject;
    keep(draft);
  }, 400);
}

function submit() {
  if (!draft || draft.sending) return;
  const { age, consent_training: consent, subject } = form.elements;
  const lacks = consent.checked && !subject.value.trim();
  const wrong = [!age.checkValidity() && age, lacks && subject].find(Boolean);
  for (const field of [age, subject]) field.removeAttribute('aria-invalid');
  complain(form, '');
  if (wrong) {
    wrong.setAttribute('aria-invalid', 'true');
    complain(form, wrong === age ? t('facts.age_range') : t('nurse.need_subject'));
    wrong.closest('details').open = true;
    wrong.focus();
    return;
  }
  clearTimeout(saving);
  draft.facts = facts();
  draft.sending = true; // at once: a second click finds it so
  transmit(draft);
}

function progress(title, text, share = null) {
  stage('progress');
  const heading = $('#progress-title');
  if (heading.textContent !== title) {
    heading.textContent = title;
    say(title);
  }
  $('#progress-text').textContent = text;
  const bar = $('progress');
  show(bar, share !== null);
  if (share !== null) bar.value = share * 100;
  $('.pulse').toggleAttribute('data-still', title === t('nurse.waiting'));
  show($('#retry'), false);
  show($('#discard'), false);
}

async function transmit(item) {
  followed();
  recorder.audio.pause();
  draft = item;
  await keep(item);
  let share = 0;
  progress(t('nurse.sending'), t('nurse.sent_part', { percent: percent(0) }), 0);
  $('#progress-title').focus({ preventScroll: true });
  scrollTo({ top: 0 });
  for (;;) {
    try {
      const record = await send(item, (told) => {
        if (told.failure) progress(t('nurse.waiting'), t('nurse.waiting_text'), share);
        else {
          share = told.sent / told.total;
          progress(t('nurse.sending'), t('nurse.sent_part', { percent: percent(share) }), share);
        }
      });
      draft = null;
      watch(record.id || item.id);
      return;
    } catch (failure) {
      if (failure.status === 401) {
        progress(t('nurse.waiting'), t('nurse.login_first'), share);
        await nextLogin();
      } else if (failure.status === 403 && failure.error === 'csrf') { // the session was renewed elsewhere
        await pause(1);
        location.reload();
        return;
      } else {
        stop(failure);
        return;
      }
    }
  }
}

// The server will not have it: say why; the recording stays until it is discarded.
function stop(failure) {
  const [sentence, detail] = explain(failure);
  progress(t('nurse.refused'), sentence, null);
  if (detail) $('#progress-text').append(make('small', {}, detail));
  $('.pulse').toggleAttribute('data-still', true);
  show($('#retry'));
  show($('#discard'));
  say(sentence);
}

function watch(id) {
  followed();
  progress(t('nurse.thinking'), t('nurse.thinking_text'));
  const slow = setTimeout(() => { $('#progress-text').textContent = t('nurse.slow_text'); }, 20000);
  const end = follow(id, (record) => {
    if (record.state !== 'completed' && record.state !== 'error') return;
    followed();
    present(record, sound);
    history();
  }, (failure) => {
    if (failure.status === 404 || failure.status === 403) { clearTimeout(slow); stop(failure); show($('#retry'), false); }
  });
  followed = () => { clearTimeout(slow); end(); followed = () => {}; };
}

function present(record, heard) {
  stage('answer');
  showAnswer($('#answer'), record, heard, history);
}

function restart() {
  followed();
  draft = null;
  sound = null;
  form.reset();
  show($('#subject'), false);
  recorder.clear();
  stage('ask');
  scrollTo({ top: 0 });
  $('#record').focus();
}

// After a reload: an upload goes on, a recording that was not sent yet is shown again, an answer is waited for.
async function restore(account) {
  const items = await waiting(account);
  const item = items.find((one) => one.sending) || items.at(-1);
  if (item) {
    try { sound = await decode(item.bytes); } catch { sound = null; }
    if (item.sending) { transmit(item); return; }
    if (!sound) { await forget(item.id); return; }
    draft = item;
    form.elements.age.value = item.facts.age ?? '';
    form.elements.sex.value = item.facts.sex ?? '';
    form.elements.consent_training.checked = Boolean(item.facts.consent_training);
    show($('#subject'), form.elements.consent_training.checked);
    recorder.accept({ bytes: item.bytes, type: item.type, ...sound }, true);
  }
}

async function history() {
  let found;
  try { found = await get('/v1/inferences?limit=20'); } catch { return; } // the list that is there is better than none
  const records = found;
  show($('#history-empty'), !records.length);
  $('#history').replaceChildren(...records.map(entry));
}

function entry(record) {
  const kind = record.state === 'completed' ? record.answer?.diagnosis || 'inconclusive' : record.state;
  const name = has(`history.${kind}`) ? t(`history.${kind}`) : kind;
  const more = [record.facts?.sex && t(`facts.${record.facts.sex}`), record.facts?.age, record.label && t('history.labelled')].filter(Boolean).join(' · ');
  const inside = [make('span', { class: `spot ${kind}`, 'aria-hidden': 'true' }), make('span', { class: 'two' }, make('span', { class: 'what' }, name), more && make('span', { class: 'when' }, more)), make('span', { class: 'when' }, when(record.created_at))];
  if (record.state === 'uploading') return make('li', {}, make('div', { class: 'item' }, inside));
  return make('li', {}, make('button', { type: 'button', class: 'item', 'aria-label': `${name}. ${t('history.open', { when: when(record.created_at) })}`, onclick: () => open(record) }, inside));
}

async function open(record) {
  if (!$('#progress').hidden || ['ready', 'recording'].includes($('#recorder').dataset.state)) return; // one thing at a time
  let whole = record;
  try { whole = await get(`/v1/inferences/${record.id}`); } catch { /* what the list has is enough */ }
  if (whole.state === 'processing') { sound = null; watch(whole.id); } else present(whole, null);
}
