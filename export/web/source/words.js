// Sentences about the model. All of them are set as text, never as HTML: names may come from anyone.

const number = new Intl.NumberFormat("en");

/** What is missing in this browser. @returns {string | null} A sentence, or null. */
export function missingFeature() {
  // The smallest module with an instruction of the SIMD extension.
  const simd = [0, 97, 115, 109, 1, 0, 0, 0, 1, 5, 1, 96, 0, 1, 123, 3, 2, 1, 0, 10, 10, 1, 8, 0, 65, 0, 253, 15, 253, 98, 11];
  const needs = [
    ["WebAssembly", typeof WebAssembly === "object"],
    ["WebAssembly with SIMD", typeof WebAssembly === "object" && WebAssembly.validate(new Uint8Array(simd))],
    ["DecompressionStream", typeof DecompressionStream === "function"],
    ["Worker", typeof Worker === "function"],
  ];
  const missing = needs.find(([, there]) => !there);
  return missing
    ? `This browser has no ${missing[0]}, which the page needs. Use a current Chrome, Edge, Firefox or Safari.`
    : null;
}

/** What the model draws and how sparse its code is. @returns {string} */
export function describeSparsity(about) {
  const side = about.image_size;
  const [channels, height, width] = about.code_shapes[0];
  const kinds = about.titles.length ? ` of ${about.titles.length} classes` : "";
  const start =
    `A network maps random noise to images of ${side} × ${side} pixels${kinds}. Before the last layer, an image is a ` +
    `code, Γ1: ${channels} maps of ${height} × ${width} coefficients, one map per atom.`;
  if (!about.dials.length) return `${start} The codes of this model are not limited.`;
  const limits = about.dials.map(({ level, unit, k, limit }) => {
    const share = `${number.format(k)} of ${number.format(limit)} coefficients`;
    return unit === "needle" ? `Γ${level} keeps ${share} at each position` : `Γ${level} keeps ${share} in each image`;
  });
  return `${start} The code is sparse: ${limits.join(", and ")}; the others are zero.`;
}

/** The setting of a slider. @returns {string} */
export function describeK(/** @type {number} */ k, { unit, limit }) {
  return `${number.format(k)} of ${number.format(limit)} per ${unit === "needle" ? "position" : "image"}`;
}

/** A density in words. @returns {string} */
export function describeDensity(/** @type {number} */ density) {
  return `density ${density.toFixed(3)}`;
}
