// Pixels from the output of the network, as pictures/images.py makes them.

/** Rounds to the nearest integer, halves to the even one, as numpy's rint. */
function rint(/** @type {number} */ value) {
  const rounded = Math.round(value);
  return value % 1 === 0.5 && rounded % 2 ? rounded - 1 : rounded;
}

/**
 * Scales images in [-1, 1] to pixels: -1 becomes 0, 1 becomes 255.
 * @param {Float32Array} image Shape (count, 3, side, side).
 * @param {number} count
 * @param {number} side
 * @returns {Uint8ClampedArray} RGBA, shape (count, side, side, 4).
 * @throws {RangeError} On NaN and infinities.
 */
export function toPixels(image, count, side) {
  const size = side * side;
  const pixels = new Uint8ClampedArray(count * size * 4).fill(255);
  for (let picture = 0; picture < count; picture++) {
    for (let channel = 0; channel < 3; channel++) {
      const start = (picture * 3 + channel) * size;
      for (let place = 0; place < size; place++) {
        const value = image[start + place];
        if (!Number.isFinite(value)) {
          throw new RangeError(`Image ${picture} holds NaN or infinity: the weights have diverged.`);
        }
        const clipped = Math.fround(Math.min(1, Math.max(-1, value)) + 1);
        pixels[(picture * size + place) * 4 + channel] = rint(Math.fround(clipped * 127.5));
      }
    }
  }
  return pixels;
}

/**
 * Arranges images in a nearly square grid on white, with gaps of 2 pixels, as `sparsegen sample --out grid.png` does.
 * @param {ImageData[]} images
 * @param {number} scale Factor by which pixels are enlarged.
 * @returns {HTMLCanvasElement}
 */
export function gridOf(images, scale = 2) {
  const gap = 2;
  const columns = Math.ceil(Math.sqrt(images.length));
  const rows = Math.ceil(images.length / columns);
  const { width, height } = images[0];
  const sheet = document.createElement("canvas");
  sheet.width = columns * (width + gap) + gap;
  sheet.height = rows * (height + gap) + gap;
  const context = sheet.getContext("2d");
  context.fillStyle = "#fff";
  context.fillRect(0, 0, sheet.width, sheet.height);
  images.forEach((image, index) => {
    const [left, top] = [index % columns, Math.floor(index / columns)];
    context.putImageData(image, gap + left * (width + gap), gap + top * (height + gap));
  });
  const enlarged = document.createElement("canvas");
  enlarged.width = scale * sheet.width;
  enlarged.height = scale * sheet.height;
  const target = enlarged.getContext("2d");
  target.imageSmoothingEnabled = false;
  target.drawImage(sheet, 0, 0, enlarged.width, enlarged.height);
  return enlarged;
}
