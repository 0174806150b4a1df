element.addEventListener('click', event => {
  const tile = event.target.closest('button[data-index]');
  if (!tile) return;
  element.querySelectorAll('button').forEach(other => other.setAttribute('aria-pressed', other === tile));
  trigger('pick', {index: Number(tile.dataset.index)});
});
