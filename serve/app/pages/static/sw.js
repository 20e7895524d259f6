// The pages open without a network, so that recording can go on: pages from the network, else as they were last;
// static files by their build, which never change. Nothing of the API is ever kept here.
const SHELL = 'spira-1';
const PAGES = ['/', '/collect', '/engineer'];

self.addEventListener('install', () => self.skipWaiting());
self.addEventListener('activate', (event) => event.waitUntil(self.clients.claim()));
self.addEventListener('fetch', (event) => {
  const { request } = event;
  const url = new URL(request.url);
  if (request.method !== 'GET' || url.origin !== location.origin) return;
  if (request.mode === 'navigate' && PAGES.includes(url.pathname)) event.respondWith(page(request, url));
  else if (url.pathname.startsWith('/static/')) event.respondWith(file(request, url));
});

async function page(request, url) {
  const cache = await caches.open(SHELL);
  try {
    const answer = await fetch(request);
    if (answer.ok) await cache.put(url.pathname, answer.clone());
    return answer;
  } catch (error) {
    const kept = await cache.match(url.pathname);
    if (kept) return kept;
    throw error;
  }
}

async function file(request, url) {
  const cache = await caches.open(SHELL);
  const kept = await cache.match(url.pathname);
  if (kept) return kept;
  const answer = await fetch(request);
  if (answer.ok) {
    await cache.put(url.pathname, answer.clone());
    const build = url.pathname.split('/')[2];
    for (const old of await cache.keys()) { // files of former builds
      const path = new URL(old.url).pathname;
      if (path.startsWith('/static/') && path.split('/')[2] !== build) await cache.delete(old);
    }
  }
  return answer;
}
