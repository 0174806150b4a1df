// Elements of the page.

/** The element with an id. @returns {HTMLElement} */
export const find = (/** @type {string} */ id) => document.getElementById(id);

/** Makes an element. @returns {HTMLElement} */
export function make(tag, properties = {}, ...children) {
  const element = Object.assign(document.createElement(tag), properties);
  element.append(...children);
  return element;
}

/** Shows an image on a canvas of its size. */
export function paintImage(/** @type {HTMLCanvasElement} */ canvas, /** @type {ImageData} */ image) {
  if (canvas.width !== image.width || canvas.height !== image.height) {
    Object.assign(canvas, { width: image.width, height: image.height });
  }
  canvas.getContext("2d").putImageData(image, 0, 0);
}
