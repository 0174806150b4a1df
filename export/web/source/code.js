// What the code inspector computes from Γ1 and the atoms, as service/page/inspector.py does, and edits of a code.

// A perceptual dark-to-light scale: the colors of `inferno` at equal steps.
export const INFERNO = [
  [0, 0, 4],
  [40, 11, 84],
  [101, 21, 110],
  [159, 42, 99],
  [212, 72, 66],
  [245, 125, 21],
  [250, 193, 39],
  [252, 255, 164],
];

/**
 * The non-zeros of every needle.
 * @param {Float32Array} code Shape (C, H, W).
 * @param {number} size H·W.
 * @returns {Uint32Array} Shape (H, W).
 */
export function countNonZeros(code, size) {
  const counts = new Uint32Array(size);
  for (let place = 0; place < code.length; place++) if (code[place] !== 0) counts[place % size]++;
  return counts;
}

/**
 * Colors values from 0 (dark) to `top` (light).
 * @param {ArrayLike<number>} values Shape (H, W).
 * @param {number} top
 * @param {number} width W.
 * @returns {ImageData}
 */
export function heatMap(values, top, width) {
  const image = new ImageData(width, values.length / width);
  for (let place = 0; place < values.length; place++) {
    const step = Math.min(1, values[place] / top) * (INFERNO.length - 1);
    const low = Math.min(INFERNO.length - 2, Math.floor(step));
    for (let channel = 0; channel < 3; channel++) {
      const [from, to] = [INFERNO[low][channel], INFERNO[low + 1][channel]];
      image.data[4 * place + channel] = Math.round(from + (step - low) * (to - from));
    }
    image.data[4 * place + 3] = 255;
  }
  return image;
}

/**
 * The use of each atom in an image: its share ‖Γ[c]‖² ‖d_c‖² of the sum of all, and its largest coefficient.
 * @param {Float32Array} code Γ1, shape (C, H, W).
 * @param {Float32Array} dictionary Shape (C, 3, h, w).
 * @param {number} atoms C.
 * @returns {{atom: number, share: number, peak: number}[]} The strongest first.
 */
export function atomUse(code, dictionary, atoms) {
  const energy = (values, atom) => {
    const size = values.length / atoms;
    let sum = 0;
    for (let place = atom * size; place < (atom + 1) * size; place++) sum += values[place] ** 2;
    return sum;
  };
  const size = code.length / atoms;
  const used = Array.from({ length: atoms }, (_, atom) => {
    let peak = 0;
    for (let place = atom * size; place < (atom + 1) * size; place++) {
      if (Math.abs(code[place]) > Math.abs(peak)) peak = code[place];
    }
    return { atom, share: energy(code, atom) * energy(dictionary, atom), peak };
  });
  const total = used.reduce((sum, { share }) => sum + share, 0) || 1;
  for (const each of used) each.share /= total;
  return used.sort((a, b) => b.share - a.share || a.atom - b.atom);
}

/**
 * The picture of an atom: zero is mid-gray, and the contrast is scaled by its largest magnitude.
 * @param {Float32Array} dictionary Shape (C, 3, h, w).
 * @param {number[]} shape [C, 3, h, w].
 * @param {number} atom
 * @returns {ImageData}
 */
export function atomPicture(dictionary, [, , height, width], atom) {
  const size = height * width;
  const values = dictionary.subarray(3 * size * atom, 3 * size * (atom + 1));
  const peak = values.reduce((largest, value) => Math.max(largest, Math.abs(value)), 0) || 1;
  const image = new ImageData(width, height);
  for (let place = 0; place < size; place++) {
    for (let channel = 0; channel < 3; channel++) {
      image.data[4 * place + channel] = Math.round(127.5 + (127.5 * values[channel * size + place]) / peak);
    }
    image.data[4 * place + 3] = 255;
  }
  return image;
}

/**
 * The difference of two images on mid-gray, scaled so that the largest change has full contrast.
 * @param {Uint8ClampedArray} before RGBA.
 * @param {Uint8ClampedArray} after RGBA.
 * @param {number} width
 * @returns {{image: ImageData, mean: number, peak: number}} mean and peak of the change in gray levels.
 */
export function difference(before, after, width) {
  const image = new ImageData(width, before.length / 4 / width);
  let [sum, peak] = [0, 0];
  for (let place = 0; place < before.length; place++) {
    const change = Math.abs(after[place] - before[place]);
    sum += change;
    peak = Math.max(peak, change);
  }
  for (let place = 0; place < before.length; place++) {
    const change = place % 4 === 3 ? 127.5 : (after[place] - before[place]) * (127.5 / (peak || 1));
    image.data[place] = Math.round(127.5 + change);
  }
  return { image, mean: sum / ((before.length * 3) / 4), peak };
}

/** Changes of a Γ1: painted coefficients, and atoms that are switched off. */
export class Edits {
  constructor() {
    /** @type {Set<number>} */
    this.off = new Set();
    /** @type {Map<number, number>} Painted coefficients by their place in Γ1. */
    this.painted = new Map();
    /** @type {Map<number, number>[]} The painted coefficients before each stroke. */
    this.strokes = [];
  }

  get isEmpty() {
    return !this.off.size && !this.painted.size;
  }

  /** Notes that a stroke begins, to which `undo` goes back. */
  beginStroke() {
    this.strokes.push(new Map(this.painted));
    if (this.strokes.length > 100) this.strokes.shift();
  }

  undo() {
    this.painted = this.strokes.pop() ?? this.painted;
  }

  /**
   * @param {Float32Array} code Γ1, shape (C, H, W).
   * @param {number} size H·W.
   * @returns {Float32Array} A changed copy; an atom that is off has no painted coefficients either.
   */
  apply(code, size) {
    const edited = code.slice();
    for (const [place, value] of this.painted) edited[place] = value;
    for (const atom of this.off) edited.fill(0, atom * size, (atom + 1) * size);
    return edited;
  }
}
