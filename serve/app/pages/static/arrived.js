// A browser drops what it is loading when the network changes under it (Wi-Fi to mobile), and a page whose module did
// not arrive stays empty: it is loaded again, twice at most. A module that runs says so in data-begun.
addEventListener('load', () => {
  try {
    const tries = Number(sessionStorage.getItem('spira-tries'));
    if ('begun' in document.documentElement.dataset) sessionStorage.removeItem('spira-tries');
    else if (navigator.onLine && tries < 2) {
      sessionStorage.setItem('spira-tries', tries + 1);
      location.reload();
    }
  } catch { /* storage is off: nobody could count */ }
});
