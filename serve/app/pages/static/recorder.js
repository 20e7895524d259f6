// The recorder of a page: microphone or file -> 'recording' events with {bytes, type, samples, rate, judged}, or null.
import { $, complain, draw, icon, make, say, show } from './dom.js';
import { LIMITS, decode, encode, judge, readable } from './wav.js';
import { number, t } from './words.js';

const LONGEST = 30; // seconds of one take; the sentence takes about ten
const READY = 3; // seconds to get ready
// What a telephone does for a call (echo, noise, level) changes the very thing that the model listens to.
const RAW = { channelCount: 1, echoCancellation: false, noiseSuppression: false, autoGainControl: false };
const KINDS = ['audio/webm;codecs=pcm', 'audio/webm;codecs=opus', 'audio/mp4', 'audio/ogg;codecs=opus'];

export class Recorder extends EventTarget {
  constructor(place) {
    super();
    this.place = place;
    this.take = $('.take', place);
    this.review = $('.review', place);
    this.audio = new Audio();
    this.token = 0; // of the take that goes on; whatever comes late from an earlier one is ignored
    $('#record', place).addEventListener('click', () => this.press());
    $('.file input', place).addEventListener('change', (event) => this.choose(event.target));
    $('.again', place).addEventListener('click', () => { this.clear(); $('#record', place).focus(); });
    $('.play', place).addEventListener('click', () => (this.audio.paused ? this.audio.play() : this.audio.pause()));
    $('.wave', place).addEventListener('click', (event) => this.seek(event));
    for (const name of ['play', 'pause', 'ended', 'timeupdate', 'loadedmetadata']) this.audio.addEventListener(name, () => this.progress());
    addEventListener('resize', () => this.sound && this.progress());
    addEventListener('spira-theme', () => this.sound && this.progress());
  }

  state(name, hint, buttonName = t('recorder.record')) {
    this.place.dataset.state = name;
    $('.hint', this.place).textContent = hint;
    $('.record .name', this.place).textContent = buttonName;
    show($('.meter', this.place), name === 'recording');
  }

  press() {
    if (this.place.dataset.state === 'idle') this.begin();
    else if (this.place.dataset.state === 'ready') this.clear();
    else if (this.place.dataset.state === 'recording') this.stop();
  }

  async begin() {
    this.clear();
    const token = this.token;
    if (!navigator.mediaDevices?.getUserMedia || !window.MediaRecorder) {
      complain(this.take, t(window.isSecureContext ? 'recorder.unsupported' : 'common.insecure'));
      return;
    }
    this.state('ready', t('recorder.ready', { n: READY }), t('recorder.stop'));
    let stream;
    try {
      stream = await navigator.mediaDevices.getUserMedia({ audio: RAW, video: false });
    } catch (error) {
      this.clear();
      complain(this.take, t(error.name === 'NotFoundError' ? 'recorder.no_microphone' : 'recorder.denied'));
      return;
    }
    if (token !== this.token) { stream.getTracks().forEach((track) => track.stop()); return; }
    this.stream = stream;
    for (let left = READY; left > 0; left -= 1) {
      $('.count', this.place).textContent = left;
      this.state('ready', t('recorder.ready', { n: left }), t('recorder.stop'));
      say(String(left));
      await new Promise((resolve) => { setTimeout(resolve, 1000); });
      if (token !== this.token) return;
    }
    this.record(stream, token);
  }

  record(stream, token) {
    const type = KINDS.find((kind) => MediaRecorder.isTypeSupported(kind));
    const media = new MediaRecorder(stream, type ? { mimeType: type, audioBitsPerSecond: 256000 } : {});
    const parts = [];
    media.addEventListener('dataavailable', (event) => event.data.size && parts.push(event.data));
    media.addEventListener('stop', async () => {
      this.silence();
      if (token !== this.token) return;
      this.state('working', t('recorder.working'));
      const bytes = new Uint8Array(await new Blob(parts).arrayBuffer());
      try {
        const sound = await decode(bytes);
        if (token === this.token) this.accept({ bytes: encode(sound), type: 'audio/wav', ...sound });
      } catch {
        this.clear();
        complain(this.take, t('recorder.unreadable'));
      }
    });
    this.media = media;
    media.start(1000);
    say(t('recorder.stop'));
    this.state('recording', t('recorder.recording', { n: LONGEST }), t('recorder.stop'));
    this.watch(stream, performance.now(), token);
  }

  // The level meter and the time that is left.
  watch(stream, began, token) {
    this.context = new AudioContext();
    const analyser = this.context.createAnalyser();
    analyser.fftSize = 2048;
    this.context.createMediaStreamSource(stream).connect(analyser);
    const samples = new Float32Array(analyser.fftSize);
    const meter = $('.meter', this.place);
    let smooth = -60;
    let told = 0;
    const look = () => {
      if (token !== this.token || this.media?.state !== 'recording') return;
      analyser.getFloatTimeDomainData(samples);
      let sum = 0;
      let peak = 0;
      for (const value of samples) { sum += value * value; peak = Math.max(peak, Math.abs(value)); }
      const level = Math.max(-60, 10 * Math.log10(sum / samples.length + 1e-9));
      smooth = level > smooth ? level : smooth - 0.6;
      const now = performance.now();
      const seconds = (now - began) / 1000;
      this.place.style.setProperty('--level', ((smooth + 60) / 60).toFixed(3));
      this.place.style.setProperty('--left', Math.max(0, 1 - seconds / LONGEST).toFixed(4));
      if (now - told > 400) {
        told = now;
        meter.setAttribute('aria-valuenow', Math.round(smooth));
        const zone = t(peak > 0.98 ? 'recorder.high' : smooth < -42 ? 'recorder.low' : 'recorder.good');
        $('.zone', meter).textContent = zone;
        meter.setAttribute('aria-valuetext', zone);
        $('.hint', this.place).textContent = t('recorder.recording', { n: Math.max(0, Math.ceil(LONGEST - seconds)) });
      }
      if (seconds >= LONGEST) this.stop();
    };
    this.timer = setInterval(look, 50); // not animation frames: these stop in a hidden page, the recording does not
    look();
  }

  stop() { if (this.media?.state === 'recording') this.media.stop(); }

  silence() {
    clearInterval(this.timer);
    this.stream?.getTracks().forEach((track) => track.stop());
    if (this.context && this.context.state !== 'closed') this.context.close();
    this.stream = null;
    this.context = null;
  }

  async choose(input) {
    const file = input.files[0];
    input.value = '';
    if (!file) return;
    this.clear();
    const token = this.token;
    if (file.size > LIMITS.bytes) { complain(this.take, t('recorder.too_large')); return; }
    this.state('working', t('recorder.working'));
    try {
      const bytes = new Uint8Array(await file.arrayBuffer());
      const sound = await decode(bytes);
      if (token !== this.token) return;
      this.accept(readable(bytes) ? { bytes, type: file.type || 'audio/wav', ...sound } : { bytes: encode(sound), type: 'audio/wav', ...sound });
    } catch {
      if (token !== this.token) return;
      this.clear();
      complain(this.take, t('recorder.unreadable'));
    }
  }

  // Take a recording over and show what it is like. restored: one that this device kept.
  accept(recording, restored = false) {
    const judged = judge(recording);
    this.sound = { ...recording, judged };
    this.state('idle', t('recorder.hint'));
    show(this.take, false);
    show(this.review);
    complain(this.take, '');
    this.url = URL.createObjectURL(new Blob([recording.bytes], { type: recording.type }));
    this.audio.src = this.url;
    this.peaks = null;
    this.progress();
    const chip = (kind, sign, text) => make('li', { class: kind }, icon(sign), text);
    const checks = [chip('', 'check', t('recorder.length', { n: number(judged.seconds, 1) }))];
    if (judged.stop) checks.splice(0, 1, chip('stop', 'stop', t(`recorder.${judged.stop}`)));
    else {
      if (!judged.doubts.includes('quiet')) checks.push(chip('', 'check', t('recorder.level_good')));
      if (!judged.doubts.includes('clipped')) checks.push(chip('', 'check', t('recorder.clean')));
      checks.push(...judged.doubts.map((word) => chip('doubt', 'doubt', t(`recorder.${word}`))));
    }
    $('.checks', this.place).replaceChildren(...checks);
    const worries = judged.stop ? [judged.stop] : judged.doubts;
    say([restored ? t('nurse.restored') : t('recorder.done', { n: number(judged.seconds, 1) }), ...worries.map((word) => t(`recorder.${word}`))].join(' '));
    if (!restored) $('.play', this.place).focus();
    this.dispatchEvent(new CustomEvent('recording', { detail: { ...this.sound, restored } }));
  }

  clear() {
    this.token += 1;
    if (this.media?.state === 'recording') this.media.stop();
    this.silence();
    this.media = null;
    this.audio.pause();
    this.audio.removeAttribute('src');
    if (this.url) URL.revokeObjectURL(this.url);
    this.url = null;
    const had = this.sound;
    this.sound = null;
    show(this.take);
    show(this.review, false);
    complain(this.take, '');
    this.state('idle', t('recorder.hint'));
    if (had) this.dispatchEvent(new CustomEvent('recording', { detail: null }));
  }

  seek(event) {
    const box = event.currentTarget.getBoundingClientRect();
    if (this.audio.duration) this.audio.currentTime = ((event.clientX - box.left) / box.width) * this.audio.duration;
  }

  progress() {
    const play = $('.play', this.place);
    play.toggleAttribute('data-on', !this.audio.paused);
    play.setAttribute('aria-label', t(this.audio.paused ? 'recorder.play' : 'recorder.pause'));
    if (!this.sound) return;
    const { seconds } = this.sound.judged;
    $('.time', this.place).textContent = `${number(this.audio.currentTime || 0, 1)} / ${number(seconds, 1)} s`;
    draw($('.wave', this.place), (context, width, height) => wave(context, width, height, this.sound, this.audio.currentTime / seconds, $('.wave', this.place)));
  }
}

function wave(context, width, height, { samples }, played, canvas) {
  const bars = Math.max(8, Math.floor(width / 4));
  const size = Math.max(1, Math.floor(samples.length / bars));
  const peaks = Array.from({ length: bars }, (_, bar) => {
    let peak = 0;
    for (let i = bar * size; i < (bar + 1) * size && i < samples.length; i += 4) peak = Math.max(peak, Math.abs(samples[i]));
    return peak;
  });
  const top = Math.max(0.05, ...peaks);
  context.fillStyle = getComputedStyle(canvas).color;
  peaks.forEach((peak, bar) => {
    const tall = Math.max(2, (peak / top) * (height - 4));
    context.globalAlpha = (bar + 0.5) / bars <= played ? 1 : 0.38;
    context.beginPath();
    context.roundRect?.(bar * 4, (height - tall) / 2, 2.5, tall, 1.25);
    if (!context.roundRect) context.rect(bar * 4, (height - tall) / 2, 2.5, tall);
    context.fill();
  });
}
