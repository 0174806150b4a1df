let asked = 0, kept = '';
const place = name => element.querySelector(name);
// The server removes the given picture when its job ends; the tab stores it, so that a reload shows both pictures.
const keep = (job, before) => {
  if (before && kept !== job) {
    kept = job;
    try { sessionStorage.setItem('before', JSON.stringify({job, before})); }
    catch (error) { sessionStorage.removeItem('before'); }  // too large for the storage: a reload shows one picture
  }
  const stored = before ? null : JSON.parse(sessionStorage.getItem('before') || '{}');
  return before || (stored.job === job ? stored.before : null);
};
const show = async () => {
  const turn = ++asked, {after, job, done} = props;
  const before = after ? keep(job, props.before) : props.before;
  const loaded = new Image();  // decoded before it is shown, so that nothing flickers
  if (after) {
    loaded.src = after;
    await loaded.decode();
  }
  if (turn !== asked) return;
  const compare = place('.compare');
  if (before) place('.before').src = before.url;
  if (after) place('.after').src = after;
  place('.before').hidden = !before;
  place('.after').hidden = !after;
  place('.empty').hidden = Boolean(before || after);
  compare.hidden = !(before || after);
  compare.classList.toggle('both', Boolean(before && after));
  const link = place('.get');
  link.hidden = !(after && done);
  if (link.href) URL.revokeObjectURL(link.href);
  if (link.hidden) link.removeAttribute('href');
  else link.href = URL.createObjectURL(await (await fetch(after)).blob());  // browsers limit data URLs of links
  const [width, height] = before ? [before.width, before.height] : [loaded.naturalWidth, loaded.naturalHeight];
  if (width && height) compare.style.setProperty('--ratio', width / height);
};
element.addEventListener('input', event => {
  if (event.target.type === 'range') place('.compare').style.setProperty('--split', event.target.value + '%');
});
watch(['before', 'after', 'done'], show);
show();
