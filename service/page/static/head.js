element.addEventListener('click', event => {
  const target = document.querySelector(event.target.closest('button[data-to]')?.dataset.to || null);
  if (!target) return;
  const closed = target.querySelector(':scope > button.label-wrap:not(.open)');
  if (closed) closed.click();
  target.scrollIntoView({behavior: 'smooth'});
  (target.querySelector('summary, button') || target).focus({preventScroll: true});
});
