// Files that the visitor saves.

/**
 * Encodes an array as a .npy file (format 1.0, little-endian float32).
 * @param {Float32Array} values
 * @param {number[]} shape
 * @returns {Blob}
 */
export function npyFile(values, shape) {
  const text = `{'descr': '<f4', 'fortran_order': False, 'shape': (${shape.join(", ")},), }`;
  const length = Math.ceil((10 + text.length + 1) / 64) * 64 - 10; // numpy aligns the data
  const header = new Uint8Array(10 + length);
  header.set([0x93, 0x4e, 0x55, 0x4d, 0x50, 0x59, 1, 0, length & 0xff, length >> 8]);
  header.set(new TextEncoder().encode(text.padEnd(length - 1) + "\n"), 10);
  const data = new DataView(new ArrayBuffer(4 * values.length));
  values.forEach((value, place) => data.setFloat32(4 * place, value, true));
  return new Blob([header, data.buffer]);
}

/**
 * The non-zero entries of a code, with what it was drawn from.
 * @param {Float32Array} code Shape (C, H, W).
 * @param {number[]} shape [C, H, W].
 * @param {object} origin Further entries of the file.
 * @returns {Blob}
 */
export function jsonFile(code, [channels, height, width], origin) {
  const entries = [];
  code.forEach((value, place) => {
    const [channel, rest] = [Math.floor(place / (height * width)), place % (height * width)];
    if (value !== 0) entries.push([channel, Math.floor(rest / width), rest % width, value]);
  });
  const facts = { ...origin, shape: [channels, height, width], columns: ["atom", "row", "column", "coefficient"] };
  return new Blob([JSON.stringify({ ...facts, entries })], { type: "application/json" });
}

/** Saves a file in the visitor's downloads. */
export function saveFile(/** @type {string} */ name, /** @type {Blob} */ content) {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(content);
  link.download = name;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 60_000);
}

/** Saves a canvas as PNG. */
export function savePicture(/** @type {string} */ name, /** @type {HTMLCanvasElement} */ canvas) {
  canvas.toBlob((content) => saveFile(name, content), "image/png");
}
