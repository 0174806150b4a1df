() => {
  const tabs = document.querySelector('#tabs');
  tabs.dataset.job = location.hash.startsWith('#restore=') ? location.hash.split('=')[1] : '';
  tabs.addEventListener('click', event => {
    const tab = event.target.closest('[role=tab]')?.innerText.trim().toLowerCase();
    if (tab === 'sample') history.replaceState(null, '', tabs.dataset.sample || '#sample');
    if (tab === 'encode') history.replaceState(null, '', '#encode');
    if (tab === 'restore') history.replaceState(null, '', tabs.dataset.job ? '#restore=' + tabs.dataset.job : '#restore');
  });
  window.addEventListener('hashchange', () => location.reload());
  // The label of Gradio differs from the visible text, which is sufficient.
  const unlabel = () => document.querySelectorAll('.upload-container[aria-label]').forEach(button => {
    button.removeAttribute('aria-label');
  });
  unlabel();
  new MutationObserver(unlabel).observe(tabs, {childList: true, subtree: true});
  return [location.hash];
}
