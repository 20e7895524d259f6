// What every page has: who is logged in, the way in and out, the theme, the network's state.
import { call, onended, post, remember } from './api.js';
import { $, $$, complain, say, show } from './dom.js';
import { t } from './words.js';

let person = null;
let entered = []; // called at each login: (person)
let leaving = async () => true; // asked before logging out

export const who = () => person;
export const onleave = (ask) => { leaving = ask; };
export const nextLogin = () => new Promise((resolve) => { entered.push(resolve); });

// Start a page for those with `role`: callback(person) once, at the first login that may see it.
export async function start(role, callback) {
  document.documentElement.dataset.begun = ''; // for arrived.js
  chrome();
  let begun = false;
  const enter = async (found) => {
    person = found;
    remember(found.csrf);
    try { sessionStorage.setItem('spira-person', JSON.stringify({ name: found.name, roles: found.roles })); } catch { /* storage is off */ }
    show($('#login'), false);
    show($('#leave'));
    $('#leave').setAttribute('aria-label', `${t('login.leave')} (${found.name})`);
    $('#leave').title = t('login.as', { name: found.name });
    const links = $$('#pages a');
    for (const link of links) show(link, found.roles.includes(link.dataset.role));
    show($('#pages'), links.filter((link) => !link.hidden).length > 1 || !found.roles.includes(role));
    const may = found.roles.includes(role);
    show($('#forbidden'), !may);
    show($('#page'), may);
    const waiting = entered;
    entered = [];
    if (may && !begun) { begun = true; await callback(found); }
    waiting.forEach((resolve) => resolve(found));
  };
  onended(() => { if ($('#login').hidden) ask(t('login.ended'), enter); });
  addEventListener('online', async () => { if (person && !person.csrf) { try { await enter((await call('GET', '/v1/session')).body); } catch { /* asked at the next call */ } } });
  try {
    await enter((await call('GET', '/v1/session', { seconds: 10 })).body);
  } catch (failure) {
    const known = failure.status === 401 ? null : recall();
    // No network, and this tab was logged in: recording goes on, sending waits.
    if (known) await enter({ ...known, csrf: '' });
    else ask(failure.status === 401 ? '' : t('errors.network'), enter);
  }
}

function recall() {
  try { return JSON.parse(sessionStorage.getItem('spira-person')); } catch { return null; }
}

function ask(why, enter) {
  const place = $('#login');
  const form = $('form', place);
  show(place);
  show($('#page'), false);
  show($('#forbidden'), false);
  complain(place, why);
  form.onsubmit = async (event) => {
    event.preventDefault();
    const button = $('button', form);
    const name = form.elements.name.value.trim().toLowerCase();
    const password = form.elements.password.value;
    if (!name || !password) { complain(place, t('login.missing')); return; }
    if (button.disabled) return;
    button.disabled = true;
    button.textContent = t('login.entering');
    complain(place, '');
    try {
      const found = await post('/v1/session', { name, password });
      form.elements.password.value = '';
      if (person && person.name !== found.name) { location.reload(); return; } // nothing of one account is shown to another
      await enter(found);
      // Whoever has moved on by keyboard while the page was filled is not called back.
      if (document.activeElement === document.body || place.contains(document.activeElement)) {
        $('#main').focus({ preventScroll: true });
        scrollTo({ top: 0 });
      }
    } catch (failure) {
      complain(place, t(failure.status === 401 ? 'login.wrong' : failure.status === 429 ? 'login.many' : failure.offline ? 'errors.network' : 'errors.unknown'));
      form.elements.password.focus();
    } finally {
      button.disabled = false;
      button.textContent = t('login.enter');
    }
  };
  form.elements.name.focus();
}

function chrome() {
  $('#leave').addEventListener('click', async () => {
    if (!(await leaving())) return;
    try { await call('DELETE', '/v1/session'); } catch { /* the cookie ends by itself */ }
    try { sessionStorage.clear(); } catch { /* storage is off */ }
    location.assign('/');
  });
  $('#theme').addEventListener('click', () => {
    const next = document.documentElement.dataset.theme === 'dark' ? 'light' : 'dark';
    try { localStorage.setItem('spira-theme', next); } catch { document.documentElement.dataset.theme = next; }
    dispatchEvent(new Event('spira-theme'));
  });
  const network = () => {
    const notice = $('#notice');
    const was = !notice.hidden && !notice.classList.contains('good');
    notice.classList.toggle('good', navigator.onLine);
    notice.textContent = t(navigator.onLine ? 'common.online' : 'common.offline');
    show(notice, !navigator.onLine || was);
    if (navigator.onLine && was) setTimeout(() => { if (navigator.onLine) show(notice, false); }, 4000);
  };
  addEventListener('online', network);
  addEventListener('offline', network);
  if (!navigator.onLine) network();
  if (!window.isSecureContext) { $('#notice').textContent = t('common.insecure'); show($('#notice')); say(t('common.insecure')); }
  navigator.serviceWorker?.register('/sw.js').catch(() => { /* then the page needs the network to open */ });
}
