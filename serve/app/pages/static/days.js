// A day of the collection: how much came, each recording, its label now or later.
import { get, post } from './api.js';
import { $, make, say, show } from './dom.js';
import { explain, has, t, when } from './words.js';

const today = () => new Date().toISOString().slice(0, 10); // a day is UTC's, as in the lake

export class Days {
  constructor() {
    this.day = $('#day');
    this.day.value = today();
    this.day.max = today();
    this.day.addEventListener('change', () => this.load());
  }

  // A sentence above the list, read out as well.
  tell(text, good = true) {
    $('#day-told')?.remove();
    $('#counts').before(make('p', { id: 'day-told', class: good ? 'told' : 'wrong' }, text));
    say(text);
  }

  async load(day) {
    if (day) this.day.value = day;
    const chosen = this.day.value || today();
    try {
      const [recordings, days] = await Promise.all([get(`/collect/v1/recordings?day=${chosen}`), get('/collect/v1/days')]);
      this.draw(recordings, days.find((one) => one.day === chosen));
    } catch (failure) {
      this.tell(explain(failure)[0], false);
    }
  }

  draw(recordings, counted) {
    const count = (name, state) => counted?.[name] ?? recordings.filter((one) => state(one)).length;
    const counts = [['received', count('received', () => true)], ['waiting', count('waiting', (one) => one.state === 'waiting')],
      ['labelled', count('labelled', (one) => one.label)], ['withdrawn', count('withdrawn', (one) => one.state === 'withdrawn')]];
    $('#counts').replaceChildren(...counts.map(([name, value]) => make('div', {}, make('dt', {}, t(`collect.${name}`)), make('dd', {}, String(value)))));
    show($('#day-empty'), !recordings.length);
    $('#recordings').replaceChildren(...[...recordings].sort((a, b) => b.received_at.localeCompare(a.received_at)).map((one) => this.entry(one)));
  }

  entry(one) {
    const short = one.id.slice(0, 8);
    const kind = one.state === 'waiting' && one.label ? 'kept' : one.state; // labelled and yet waiting: without consent for training
    const state = has(`collect.state.${kind}`) ? t(`collect.state.${kind}`) : one.state;
    const said = [one.label && t(`facts.${one.label}`), one.sentence && t(`sentences.${one.sentence}.name`), one.site].filter(Boolean).join(' · ');
    const action = one.state === 'withdrawn' ? null : make('button', { type: 'button', class: 'plain tight', 'aria-label': t('collect.label_of', { id: short }), onclick: () => this.label(one) }, t(one.label ? 'collect.relabel' : 'collect.label'));
    return make('li', {}, make('div', { class: 'item' }, make('span', { class: `spot ${one.state}`, 'aria-hidden': 'true' }),
      make('span', { class: 'two' }, make('span', { class: 'what' }, state), make('span', { class: 'when' }, said), make('span', { class: 'when' }, `${when(one.received_at)} · `, make('code', {}, short))), action));
  }

  label(one) {
    const dialog = $('#labelling');
    const form = $('form', dialog);
    const yes = $('[value=yes]', dialog);
    form.reset();
    if (one.label) form.elements.label.value = one.label;
    yes.disabled = !one.label;
    form.onchange = () => { yes.disabled = !form.elements.label.value; };
    dialog.returnValue = '';
    dialog.onclose = async () => {
      if (dialog.returnValue !== 'yes') return;
      try {
        await post(`/collect/v1/recordings/${one.id}/label`, { label: form.elements.label.value, why: form.elements.why.value.trim() });
        this.tell(t('collect.label_saved'));
        await this.load();
      } catch (failure) {
        this.tell(explain(failure)[0], false);
      }
    };
    dialog.showModal();
  }
}
