// The sentences of the chosen language, which the page carries, and numbers and dates as that language writes them.
import { $ } from './dom.js';

const strings = JSON.parse($('#strings').textContent);
export const language = document.documentElement.lang.startsWith('pt') ? 'pt' : 'en';
const locale = document.documentElement.lang;

// t('recorder.length', {n: 3}); what is missing is shown as its key, so that a test finds it.
export function t(key, values = {}) {
  const found = key.split('.').reduce((place, part) => (place === undefined || place === null ? undefined : place[part]), strings);
  if (typeof found !== 'string') return Array.isArray(found) ? found : key;
  return found.replace(/\{(\w+)\}/g, (whole, name) => (name in values ? values[name] : whole));
}

export const has = (key) => t(key) !== key;
export const number = (value, digits = 0) =>
  new Intl.NumberFormat(locale, { minimumFractionDigits: digits, maximumFractionDigits: digits }).format(value);
export const percent = (share) => new Intl.NumberFormat(locale, { style: 'percent' }).format(share);
// 0 and 100 would claim a certainty that no model has.
export const chance = (probability) => Math.min(99, Math.max(1, Math.round(probability * 100)));

export function when(text) {
  const date = new Date(/[zZ]|[+-]\d\d:?\d\d$/.test(text) ? text : `${text}Z`); // the server's times are UTC
  if (Number.isNaN(date.getTime())) return '';
  const today = date.toDateString() === new Date().toDateString();
  const time = { hour: '2-digit', minute: '2-digit' };
  return new Intl.DateTimeFormat(locale, today ? time : { day: 'numeric', month: 'short', ...time }).format(date);
}

// The API's error words; several of them say one thing to a person.
const SAME = {
  recording: 'undecodable', no_recording: 'undecodable', too_slow: 'network', cut_off: 'network', superseded: 'network',
  uploads: 'many', tries: 'many', rate: 'many', draining: 'busy', audit: 'busy', lake: 'busy', token: 'model_server',
  csrf: 'unauthorised', session: 'unauthorised', credentials: 'unauthorised', key: 'unauthorised', role: 'forbidden', origin: 'forbidden',
  taken: 'conflict', personal_data: 'personal', field: 'parameter', form: 'parameter', day: 'parameter', unknown: 'not_found', audio_gone: 'not_found',
};
const STATUS = { 0: 'network', 401: 'unauthorised', 403: 'forbidden', 404: 'not_found', 409: 'conflict', 413: 'too_large', 415: 'unsupported', 422: 'parameter', 429: 'many', 500: 'fault', 502: 'model', 503: 'busy' };

// {error, detail, status?, request_id?} -> [sentence, what the server wrote]. A word that is not known still gets a sentence.
export function explain(failure) {
  const word = String(failure.error || '').toLowerCase();
  const key = [word, SAME[word], STATUS[failure.status], 'unknown'].find((one) => one && has(`errors.${one}`));
  const known = key === word || key === SAME[word];
  const parts = [];
  if (failure.detail && !known) parts.push(`${t('common.technical')}: ${failure.detail}`);
  if (failure.request_id) parts.push(t('common.request', { id: failure.request_id }));
  return [t(`errors.${key}`), parts.join(' · ')];
}
