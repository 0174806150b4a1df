() => {
  const tabs = document.querySelector('#tabs');
  tabs.dataset.job = location.hash.split('=')[1] || '';
  tabs.addEventListener('click', event => {
    const tab = event.target.closest('[role=tab]')?.innerText.trim().toLowerCase();
    const job = tab === 'restore' && tabs.dataset.job ? '=' + tabs.dataset.job : '';
    if (tab) history.replaceState(null, '', '#' + tab + job);
  });
  window.addEventListener('hashchange', () => location.reload());
  return [location.hash];
}
