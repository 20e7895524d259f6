// Recordings that wait on this device, and their way to the server. One has its id from the start and for ever, so
// whatever is cut off, repeated or clicked twice, the server sees one inference.
import { Failure, call } from './api.js';
import { sha256 } from './wav.js';

const CHUNK = 128 * 1024; // small enough to get through on a poor network, and to show progress
const PAUSES = [1, 2, 4, 8, 15, 30]; // seconds

const wait = (request) => new Promise((resolve, reject) => {
  request.onsuccess = () => resolve(request.result);
  request.onerror = () => reject(request.error);
});

let opened;
async function store(mode) {
  opened ??= new Promise((resolve, reject) => {
    const request = indexedDB.open('spira', 1);
    request.onupgradeneeded = () => request.result.createObjectStore('recordings', { keyPath: 'id' });
    request.onsuccess = () => resolve(request.result);
    request.onerror = () => reject(request.error);
  });
  return (await opened).transaction('recordings', mode).objectStore('recordings');
}

// Private windows of some browsers keep nothing: then a recording lives as long as the page.
const memory = new Map();
export async function keep(item) {
  memory.set(item.id, item);
  try { await wait((await store('readwrite')).put(item)); } catch { /* as long as the page */ }
}
export async function forget(id) {
  memory.delete(id);
  try { await wait((await store('readwrite')).delete(id)); } catch { /* it was never there */ }
}
export async function waiting(account) {
  let kept = [];
  try { kept = await wait((await store('readonly')).getAll()); } catch { /* only the memory */ }
  const all = new Map(kept.map((item) => [item.id, item]));
  for (const [id, item] of memory) all.set(id, item);
  return [...all.values()].filter((item) => item.account === account).sort((a, b) => a.created.localeCompare(b.created));
}

// Wait for the network's return or some seconds, whichever is first.
export const pause = (seconds) => new Promise((resolve) => {
  const done = () => { clearTimeout(timer); removeEventListener('online', done); resolve(); };
  const timer = setTimeout(done, seconds * 1000);
  addEventListener('online', done);
});

// Send one item until the server has all of it. tell({sent, total} | {failure}); resolves with the server's record, or
// throws a Failure that trying again does not mend. Two pages of one browser never send one item at the same time.
export async function send(item, tell) {
  const alone = navigator.locks ? (work) => navigator.locks.request(`spira-${item.id}`, work) : (work) => work();
  return alone(async () => {
    for (let tries = 0, again = false; ;) {
      try {
        const record = await once(item, (sent) => { tries = 0; tell({ sent, total: item.bytes.length }); });
        await forget(item.id);
        return record;
      } catch (failure) {
        const spoilt = failure.error === 'digest' && !again; // on its way: the server threw it away, so from the start, once
        if (!(failure instanceof Failure) || !(failure.passing || spoilt)) throw failure;
        again ||= spoilt;
        tell({ failure });
        await pause(PAUSES[Math.min(tries, PAUSES.length - 1)]);
        tries += 1;
      }
    }
  });
}

async function once(item, sent) {
  item.sha256 ??= await sha256(item.bytes);
  const head = { id: item.id, bytes: item.bytes.length, sha256: item.sha256, facts: item.facts, language: item.language };
  const { body } = await call('POST', '/v1/inferences', { json: head });
  if (body.state && body.state !== 'uploading') return body;
  let offset = body.offset || 0;
  sent(offset);
  for (;;) {
    const chunk = item.bytes.subarray(offset, offset + CHUNK);
    const headers = { 'Upload-Offset': String(offset), 'Content-Type': 'application/octet-stream' };
    try {
      const answer = await call('PATCH', `/v1/inferences/${item.id}/audio`, { body: chunk, headers, seconds: 60 });
      offset = answer.body.offset ?? offset + chunk.length;
      sent(Math.min(offset, item.bytes.length));
      if (answer.status === 202 || (answer.body.state && answer.body.state !== 'uploading')) return answer.body;
      if (offset >= item.bytes.length) return { id: item.id, state: 'processing' };
    } catch (failure) {
      // The server has more, or less, than we think: an answer was lost on the way. Go on from where it is.
      if (failure.status !== 409 || !Number.isInteger(failure.body.offset) || failure.body.offset === offset) throw failure;
      offset = failure.body.offset;
      sent(offset);
      if (offset >= item.bytes.length) return { id: item.id, state: 'processing' };
    }
  }
}
