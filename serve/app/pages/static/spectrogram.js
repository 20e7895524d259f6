// Samples -> picture: short-time Fourier transform, 0 to 8 kHz, which is all that the model hears, 70 dB of range.

const HIGHEST = 8000; // Hz
const RANGE = 70; // dB
// From the dark of the canvas over teal to a pale yellow: lightness grows all the way, so it reads without colour.
const STOPS = [[7, 26, 38], [11, 60, 84], [12, 110, 122], [72, 168, 140], [176, 214, 128], [253, 246, 178]];

export function spectrogram(canvas, { samples, rate }) {
  const size = 2 ** Math.round(Math.log2(rate * 0.026)); // about 26 ms: syllables and pitch both show
  const columns = Math.min(900, Math.max(120, Math.floor(samples.length / (size / 4))));
  const rows = Math.floor((size * HIGHEST) / rate);
  const window = Float32Array.from({ length: size }, (_, i) => 0.5 - 0.5 * Math.cos((2 * Math.PI * i) / size));
  const levels = new Float32Array(columns * rows);
  const re = new Float32Array(size);
  const im = new Float32Array(size);
  let top = -120;
  for (let column = 0; column < columns; column += 1) {
    const start = Math.round((column / Math.max(1, columns - 1)) * Math.max(0, samples.length - size));
    for (let i = 0; i < size; i += 1) re[i] = (samples[start + i] || 0) * window[i];
    im.fill(0);
    fourier(re, im);
    for (let row = 0; row < rows; row += 1) {
      const level = 10 * Math.log10(re[row] ** 2 + im[row] ** 2 + 1e-10);
      levels[column * rows + row] = level;
      top = Math.max(top, level);
    }
  }
  canvas.width = columns;
  canvas.height = rows;
  const context = canvas.getContext('2d');
  const image = context.createImageData(columns, rows);
  for (let column = 0; column < columns; column += 1) {
    for (let row = 0; row < rows; row += 1) {
      const share = Math.max(0, Math.min(1, 1 - (top - levels[column * rows + row]) / RANGE));
      image.data.set(colour(share), 4 * ((rows - 1 - row) * columns + column));
    }
  }
  context.putImageData(image, 0, 0);
}

function colour(share) {
  const at = share * (STOPS.length - 1);
  const low = Math.min(STOPS.length - 2, Math.floor(at));
  return [...STOPS[low].map((value, i) => value + (STOPS[low + 1][i] - value) * (at - low)), 255];
}

// In place, radix 2, decimation in time.
export function fourier(re, im) {
  const n = re.length;
  for (let i = 1, j = 0; i < n; i += 1) {
    let bit = n >> 1;
    for (; j & bit; bit >>= 1) j ^= bit;
    j ^= bit;
    if (i < j) { [re[i], re[j]] = [re[j], re[i]]; [im[i], im[j]] = [im[j], im[i]]; }
  }
  for (let length = 2; length <= n; length <<= 1) {
    const angle = (-2 * Math.PI) / length;
    for (let k = 0; k < length / 2; k += 1) {
      const c = Math.cos(angle * k);
      const s = Math.sin(angle * k);
      for (let i = k; i < n; i += length) {
        const j = i + length / 2;
        const x = re[j] * c - im[j] * s;
        const y = re[j] * s + im[j] * c;
        re[j] = re[i] - x; im[j] = im[i] - y;
        re[i] += x; im[i] += y;
      }
    }
  }
}
