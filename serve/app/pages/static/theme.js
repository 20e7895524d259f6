// Before the first paint, so that nothing flashes: the chosen theme, else the device's. CSS knows data-theme only.
{
  const dark = matchMedia('(prefers-color-scheme: dark)');
  const apply = () => {
    let chosen = null;
    try { chosen = localStorage.getItem('spira-theme'); } catch { /* storage is off */ }
    const theme = chosen || (dark.matches ? 'dark' : 'light');
    document.documentElement.dataset.theme = theme;
    document.querySelector('meta[name=theme-color]')?.setAttribute('content', theme === 'dark' ? '#0b1317' : '#f3f7f8');
  };
  apply();
  dark.addEventListener('change', apply);
  addEventListener('storage', apply);
  addEventListener('spira-theme', apply);
}
