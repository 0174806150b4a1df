element.addEventListener('click', event => {
  const atom = event.target.closest('button[data-atom]');
  if (!atom) return;
  atom.setAttribute('aria-pressed', atom.getAttribute('aria-pressed') !== 'true');
  const pressed = [...element.querySelectorAll('button[aria-pressed=true]')];
  trigger('toggle', {off: pressed.map(other => Number(other.dataset.atom))});
});
