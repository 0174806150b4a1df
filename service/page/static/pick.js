element.addEventListener('click', event => {
  const tile = event.target.closest('button[data-index]');
  if (!tile) return;
  const {index} = tile.dataset;
  element.querySelectorAll('button').forEach(other => other.setAttribute('aria-pressed', other.dataset.index === index));
  trigger('pick', {index: Number(index)});
});
