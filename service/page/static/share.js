const GAP = 2;  // pixels between the images of a grid, as in POST /sample
const say = sentence => { element.querySelector('[role=status]').textContent = sentence; };
const address = () => location.href.split('#')[0] + element.querySelector('.share').dataset.link;
const copy = async () => {
  try {
    await navigator.clipboard.writeText(address());
    say('Copied.');
  } catch (error) {  // without HTTPS, or not allowed
    prompt('The link to these images:', address());
  }
};
// The images of one side in one PNG, as the server arranges them.
const save = (side, file) => {
  const gallery = document.querySelector('#gallery');
  const sections = gallery.querySelectorAll('.sides > div');
  const images = [...(sections[side] || gallery).querySelectorAll('img')];
  const [width, height] = [images[0].naturalWidth, images[0].naturalHeight];
  const columns = Math.ceil(Math.sqrt(images.length)), rows = Math.ceil(images.length / columns);
  const canvas = document.createElement('canvas'), context = canvas.getContext('2d');
  canvas.width = columns * (width + GAP) + GAP;
  canvas.height = rows * (height + GAP) + GAP;
  context.fillStyle = 'white';
  context.fillRect(0, 0, canvas.width, canvas.height);
  images.forEach((image, place) => {
    context.drawImage(image, GAP + place % columns * (width + GAP), GAP + Math.floor(place / columns) * (height + GAP));
  });
  canvas.toBlob(content => {
    const link = Object.assign(document.createElement('a'), {href: URL.createObjectURL(content), download: file});
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 60000);
    say('Saved.');
  }, 'image/png');
};
element.addEventListener('click', event => {
  const button = event.target.closest('button');
  if (button?.hasAttribute('data-copy')) copy();
  else if (button) save(Number(button.dataset.grid), button.dataset.file);
});
// The address names the shown settings, unless another tab is open.
watch('value', () => {
  const {link} = element.querySelector('.share')?.dataset || {};
  if (!link) return;
  document.querySelector('#tabs').dataset.sample = link;
  if (!location.hash.startsWith('#restore')) history.replaceState(null, '', link);
});
