job => {
  document.querySelector('#tabs').dataset.job = job;
  history.replaceState(null, '', job ? '#restore=' + job : '#restore');
}
