// The settings in the fragment of the address, e.g. #seed=7&count=16&class=3&k=8,8&image=2.

export const LARGEST_SEED = 2n ** 64n - 1n;
export const LARGEST_COUNT = 100;

/**
 * @typedef {object} Settings
 * @property {bigint} seed 0 to 2^64 - 1.
 * @property {number} count Images, 1 to 100.
 * @property {number | null} label The class of all images; null: drawn.
 * @property {number[]} k One per projected level, Γ1 first.
 * @property {number} image The inspected image, 0 to count - 1.
 */

/** The settings that a model starts with. @returns {Settings} */
export function defaults(about) {
  return { seed: 0n, count: 16, label: null, k: about.dials.map((dial) => dial.k), image: 0 };
}

/** @returns {bigint | null} The seed that a text gives; null if it is none. */
export function readSeed(/** @type {string} */ text) {
  const digits = text.trim();
  return /^\d{1,20}$/.test(digits) && BigInt(digits) <= LARGEST_SEED ? BigInt(digits) : null;
}

function readInteger(text, low, high) {
  return /^\d{1,9}$/.test(text) && Number(text) >= low && Number(text) <= high ? Number(text) : null;
}

/**
 * Reads a fragment; a value out of range is replaced by its default.
 * @param {string} fragment
 * @param {object} about The facts of the model.
 * @returns {{settings: Settings, problems: string[]}} Problems are sentences for the visitor.
 */
export function readLink(fragment, about) {
  const settings = defaults(about);
  const problems = [];
  const given = new URLSearchParams(fragment.replace(/^#/, ""));
  const take = (name, meaning, read) => {
    if (!given.has(name)) return undefined;
    const value = read(given.get(name));
    if (value === null) problems.push(`The link has ${name}=${given.get(name).slice(0, 40)}, but it must be ${meaning}.`);
    return value ?? undefined;
  };
  settings.seed = take("seed", "0 to 2^64 - 1", readSeed) ?? settings.seed;
  settings.count =
    take("count", `1 to ${LARGEST_COUNT}`, (text) => readInteger(text, 1, LARGEST_COUNT)) ?? settings.count;
  const classes = about.titles.length;
  const meaning = classes ? `a class, 0 to ${classes - 1}` : "left out: the model has no classes";
  settings.label = take("class", meaning, (text) => readInteger(text, 0, classes - 1)) ?? null;
  const limits = about.dials.map((dial) => `1 to ${dial.limit}`).join(", ") || "left out: the model has no k";
  const readK = (text) => {
    const parts = text.split(",");
    const values = about.dials.map((dial, place) =>
      readInteger(parts.length === 1 ? parts[0] : (parts[place] ?? ""), 1, dial.limit),
    );
    const fits = values.length && (parts.length === 1 || parts.length === values.length) && !values.includes(null);
    return fits ? values : null;
  };
  settings.k = take("k", limits, readK) ?? settings.k;
  const last = settings.count - 1;
  settings.image = take("image", `0 to ${last}`, (text) => readInteger(text, 0, last)) ?? 0;
  return { settings, problems };
}

/** The fragment of settings. @returns {string} */
export function writeLink(/** @type {Settings} */ { seed, count, label, k, image }) {
  const parts = [`seed=${seed}`, `count=${count}`];
  if (label !== null) parts.push(`class=${label}`);
  if (k.length) parts.push(`k=${k.join(",")}`);
  parts.push(`image=${image}`);
  return `#${parts.join("&")}`;
}
