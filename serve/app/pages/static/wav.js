// Sound in the browser: decoding, judging, writing 16-bit WAV. The limits are the server's (extract, handler.py).

export const LIMITS = { bytes: 32 * 1024 * 1024, shortest: 0.5, longest: 120, window: 4, silent: -60, quiet: -45, clipped: 0.001, broken: 0.02 };
const READ_BY_SERVER = [['RIFF'], ['RF64'], ['fLaC'], ['OggS'], ['ID3'], ['\xff\xfb'], ['\xff\xf3'], ['\xff\xf2'], ['\xff\xfa'], ['\xff\xe3']].flat();

// Whether the server reads these bytes itself: then they are sent as they are, and it resamples as it did in training.
export function readable(bytes) {
  const head = String.fromCharCode(...bytes.subarray(0, 4));
  return READ_BY_SERVER.some((magic) => head.startsWith(magic));
}

// bytes -> {samples: Float32Array of the loudest channel, rate}; the server takes the loudest as well.
export async function decode(bytes, rate = 48000) {
  const context = new OfflineAudioContext(1, 1, rate); // not AudioContext: it needs no speaker and no gesture
  const sound = await context.decodeAudioData(bytes.slice().buffer);
  let best = sound.getChannelData(0);
  for (let channel = 1; channel < sound.numberOfChannels; channel += 1) {
    const other = sound.getChannelData(channel);
    if (power(other) > power(best)) best = other;
  }
  return { samples: best, rate: sound.sampleRate };
}

function power(samples) {
  let mean = 0;
  for (const value of samples) mean += value;
  mean /= samples.length || 1;
  let sum = 0;
  for (const value of samples) sum += (value - mean) ** 2;
  return sum / (samples.length || 1);
}

// -> {seconds, level (dBFS about the mean), clipped (share), stop, doubts}: words that `recorder.*` has sentences for.
export function judge({ samples, rate }) {
  const seconds = samples.length / rate;
  const level = Math.max(-120, 10 * Math.log10(power(samples) + 1e-12));
  let full = 0;
  for (const value of samples) if (Math.abs(value) >= 32767 / 32768) full += 1;
  const clipped = full / (samples.length || 1);
  const stop = (seconds < LIMITS.shortest && 'too_short') || (seconds > LIMITS.longest && 'too_long')
    || (level < LIMITS.silent && 'silent') || (clipped > LIMITS.broken && 'too_clipped') || '';
  const doubts = [];
  if (seconds < LIMITS.window) doubts.push('short');
  if (level < LIMITS.quiet) doubts.push('quiet');
  if (clipped > LIMITS.clipped) doubts.push('clipped');
  return { seconds, level, clipped, stop, doubts };
}

export function encode({ samples, rate }) {
  const bytes = new Uint8Array(44 + 2 * samples.length);
  const view = new DataView(bytes.buffer);
  const text = (at, word) => { for (let i = 0; i < 4; i += 1) bytes[at + i] = word.charCodeAt(i); };
  text(0, 'RIFF'); view.setUint32(4, 36 + 2 * samples.length, true); text(8, 'WAVE');
  text(12, 'fmt '); view.setUint32(16, 16, true); view.setUint16(20, 1, true); view.setUint16(22, 1, true);
  view.setUint32(24, rate, true); view.setUint32(28, 2 * rate, true); view.setUint16(32, 2, true); view.setUint16(34, 16, true);
  text(36, 'data'); view.setUint32(40, 2 * samples.length, true);
  for (let i = 0; i < samples.length; i += 1) {
    view.setInt16(44 + 2 * i, Math.max(-32768, Math.min(32767, Math.round(samples[i] * 32768))), true);
  }
  return bytes;
}

export async function sha256(bytes) {
  const digest = new Uint8Array(await crypto.subtle.digest('SHA-256', bytes));
  return [...digest].map((byte) => byte.toString(16).padStart(2, '0')).join('');
}

export function newId() {
  const bytes = crypto.getRandomValues(new Uint8Array(16));
  bytes[6] = (bytes[6] & 15) | 64; // a version 4 UUID, written in hex
  bytes[8] = (bytes[8] & 63) | 128;
  return [...bytes].map((byte) => byte.toString(16).padStart(2, '0')).join('');
}
