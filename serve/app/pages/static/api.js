// Calls of the API. A failure is always a `Failure`; status 0 where no answer came at all.

export class Failure extends Error {
  constructor(status, body = {}) {
    super(body.detail || body.error || `status ${status}`);
    Object.assign(this, { status, error: body.error || '', detail: body.detail || '', request_id: body.request_id || '', body });
  }

  get offline() { return this.status === 0; }

  // Worth another try by itself: nothing is wrong with what was sent.
  get passing() { return this.status === 0 || this.status === 408 || this.status === 429 || this.status >= 500 || this.error === 'superseded'; }
}

let csrf = '';
let ended = () => {};
export const remember = (token) => { csrf = token || ''; };
export const onended = (callback) => { ended = callback; };

// -> {status, body, headers}. json: sent as such; body: sent as it is. seconds: until it counts as unreachable. What only
// reads is asked once more where it broke off: a network that changes takes every connection with it.
export async function call(method, path, { json, body, headers = {}, seconds = 30, again = method === 'GET' } = {}) {
  const sent = { Accept: 'application/json', ...headers };
  if (json !== undefined) sent['Content-Type'] = 'application/json';
  if (method !== 'GET' && method !== 'HEAD' && csrf) sent['X-CSRF-Token'] = csrf;
  let answer;
  let text = '';
  try {
    const signal = AbortSignal.timeout ? AbortSignal.timeout(seconds * 1000) : undefined;
    answer = await fetch(path, { method, headers: sent, signal, credentials: 'same-origin', cache: 'no-store', body: json === undefined ? body : JSON.stringify(json) });
    text = await answer.text();
  } catch (error) {
    if (again && navigator.onLine && error.name !== 'TimeoutError') return call(method, path, { headers, seconds, again: false });
    throw new Failure(0, { error: 'network', detail: String(error.message || error) });
  }
  let found = {};
  try { found = text ? JSON.parse(text) : {}; } catch { found = { detail: text.slice(0, 200) }; }
  if (!answer.ok) {
    // FastAPI's own shape of a refusal has an object or a list as its detail.
    if (found.detail && typeof found.detail === 'object') found = found.detail.error ? found.detail : { error: 'parameter', detail: JSON.stringify(found.detail).slice(0, 300) };
    const failure = new Failure(answer.status, { request_id: answer.headers.get('X-Request-ID') || '', ...found });
    if (answer.status === 401 && path !== '/v1/session') ended();
    throw failure;
  }
  return { status: answer.status, body: found, headers: answer.headers };
}

export const get = async (path) => (await call('GET', path)).body;
export const post = async (path, json) => (await call('POST', path, { json })).body;

// Follow an inference until it is completed or failed: server-sent events, and asking where these do not come through.
// tell(record) for each state; returns a function that ends it.
export function follow(id, tell, trouble = () => {}) {
  let over = false;
  let timer = 0;
  let source = null;
  let pause = 1000;
  const end = () => { over = true; clearTimeout(timer); source?.close(); };
  const heard = (record) => {
    if (over) return;
    if (record.state === 'completed' || record.state === 'error') end();
    tell(record);
  };
  const ask = async () => {
    if (over) return;
    try {
      heard(await get(`/v1/inferences/${id}`));
      pause = Math.min(pause * 1.3, 8000);
    } catch (failure) {
      if (over) return;
      trouble(failure);
      if (failure.status === 404 || failure.status === 403) { end(); return; }
      pause = Math.min(pause * 1.6, 15000);
    }
    if (!over) timer = setTimeout(ask, pause);
  };
  if (window.EventSource) {
    source = new EventSource(`/v1/inferences/${id}/events`);
    source.addEventListener('state', (event) => {
      clearTimeout(timer); // it does come through
      try { heard(JSON.parse(event.data)); } catch { ask(); }
      if (!over) timer = setTimeout(ask, 20000); // a proxy may swallow the rest
    });
    source.addEventListener('error', () => {
      source.close();
      clearTimeout(timer);
      if (!over) timer = setTimeout(ask, 500);
    });
    timer = setTimeout(ask, 4000);
  } else ask();
  return end;
}
