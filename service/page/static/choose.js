element.addEventListener('click', event => {
  const model = event.target.closest('button[data-model]');
  if (!model) return;
  element.querySelectorAll('button').forEach(other => other.setAttribute('aria-pressed', other === model));
  trigger('pick', {model: model.dataset.model});
  document.querySelector('#tabs').scrollIntoView({behavior: 'smooth'});
});
