// The page: settings, images, and the inspected image.

import { Client, newestOnly } from "./client.js";
import { find, make, paintImage } from "./dom.js";
import { saveFile, savePicture } from "./files.js";
import { Inspector } from "./inspector.js";
import { defaults, LARGEST_COUNT, readLink, readSeed, writeLink } from "./link.js";
import { drawClasses, drawNoise } from "./noise.js";
import { readPart } from "./parts.js";
import { gridOf } from "./pixels.js";
import { describeDensity, describeK, describeSparsity, missingFeature } from "./words.js";

const BATCH = 16; // images drawn at once: the first ones appear early
const PARTS = ["runtime.mjs", "runtime.wasm", "generator.onnx", "synthesis.onnx", "generator.safetensors"];

const about = JSON.parse(find("about").textContent);
let settings = defaults(about);
let client, inspector;
/** @type {ImageData[]} The images of the gallery. */
let images = [];

/** Shows a problem, or hides the last one if there is none. */
function showProblem(/** @type {unknown} */ problem) {
  const text = problem instanceof Error ? problem.message : (problem ?? "");
  find("problem").textContent = text;
  find("problem").hidden = !text;
}

/** A part of the page: in it, or beside it. Its text is removed, because it takes memory. */
function takePart(/** @type {string} */ name) {
  const element = find(`part-${name}`);
  if (!element) return { url: `${name}.gz` };
  const base64 = element.textContent;
  element.remove();
  return { base64 };
}

/** Starts the worker: a module beside the page, or a joined script in it. */
function startWorker() {
  const source = find("worker");
  if (!source) return new Client("worker.js", "module", showProblem);
  // Chrome starts no module worker of a page from a file, but a classic one.
  const url = URL.createObjectURL(new Blob([source.textContent], { type: "text/javascript" }));
  return new Client(url, "classic", showProblem);
}

const classOf = (/** @type {number} */ index) =>
  settings.label ?? drawClasses(1, about.titles.length, settings.seed, index)[0];

/** "image 3, cat". */
function titleOf(/** @type {number} */ index) {
  return about.titles.length ? `image ${index}, ${about.titles[classOf(index)]}` : `image ${index}`;
}

/** The start of the names of saved files. */
function fileName() {
  const parts = [about.name, `seed${settings.seed}`, ...settings.k.map((k) => `k${k}`)];
  if (settings.label !== null) parts.push(about.titles[settings.label]);
  return parts.join("-").replace(/[^\w.-]+/g, "_");
}

/** Draws the images `first` to `first + count - 1`; see `draw` in worker.js. */
function request(first, count, keep) {
  const { seed, label, k } = settings;
  const classes = about.titles.length;
  let labels = [];
  if (classes) labels = label === null ? drawClasses(count, classes, seed, first) : new Array(count).fill(label);
  return client.call("draw", { z: drawNoise(count, about.z_dim, seed, first), labels, k, keep });
}

const pixelsOf = ({ pixels }, index) => {
  const size = 4 * about.image_size ** 2;
  return pixels.slice(index * size, (index + 1) * size);
};

function inspect(result, index) {
  const { image, seed, k } = settings;
  inspector.show({
    key: writeLink({ ...settings, count: 1, k: [] }),
    title: titleOf(image),
    file: `${fileName()}-${image}`,
    origin: { model: about.name, seed: String(seed), image, class: about.titles.length ? classOf(image) : null, k },
    k,
    codes: result.codes,
    pixels: pixelsOf(result, index),
  });
}

const drawAll = newestOnly(async (isStale) => {
  const { count, image, k } = settings;
  const link = writeLink(settings);
  const started = performance.now();
  const nonZeros = about.code_shapes.map(() => 0);
  const drawn = [];
  for (let first = 0; first < count; first += BATCH) {
    const size = Math.min(BATCH, count - first);
    const inspected = image - first;
    const here = inspected >= 0 && inspected < size;
    const result = await request(first, size, here ? inspected : null);
    for (let index = 0; index < size; index++) {
      drawn.push(new ImageData(pixelsOf(result, index), about.image_size));
      paintImage(find("gallery").children[first + index].firstChild, drawn.at(-1));
    }
    if (here && link === writeLink(settings)) inspect(result, inspected);
    result.nonZeros.forEach((found, level) => {
      nonZeros[level] += found;
    });
    if (isStale()) return;
  }
  images = drawn;
  showDensities(nonZeros.map((found, place) => found / count / about.code_shapes[place].reduce((a, b) => a * b)));
  find("gallery").dataset.drawn = link;
  showStatus(`${count} images in ${((performance.now() - started) / 1000).toFixed(2)} s`);
  find("save-grid").disabled = false;
});

const inspectOne = newestOnly(async () => {
  const link = writeLink(settings);
  const result = await request(settings.image, 1, 0);
  if (link === writeLink(settings)) inspect(result, 0);
});

let statusTimer;
/** Shows a status once the settings have been left alone for a moment, so that a moved slider is not read aloud. */
function showStatus(/** @type {string} */ text) {
  clearTimeout(statusTimer);
  statusTimer = setTimeout(() => {
    find("status").textContent = text;
  }, 400);
}

function showDensities(/** @type {number[]} */ densities) {
  about.code_shapes.forEach((_, place) => {
    find(`density-${place + 1}`).textContent = describeDensity(densities[place]);
  });
}

/** Redraws after a change of the settings. */
function change(/** @type {Partial<import("./link.js").Settings>} */ changed) {
  Object.assign(settings, changed);
  settings.image = Math.min(settings.image, settings.count - 1);
  history.replaceState(null, "", writeLink(settings));
  showGallery();
  showProblem(null);
  drawAll().catch(showProblem);
}

/** Makes as many tiles as there are images; existing ones stay, so that the focus does. */
function showGallery() {
  const gallery = find("gallery");
  while (gallery.children.length > settings.count) gallery.lastChild.remove();
  while (gallery.children.length < settings.count) {
    const index = gallery.children.length;
    const side = about.image_size;
    const tile = make("button", { type: "button" }, make("canvas", { width: side, height: side }));
    tile.addEventListener("click", () => choose(index));
    gallery.append(tile);
  }
  gallery.style.setProperty("--columns", settings.count <= 16 ? 4 : settings.count <= 36 ? 6 : 8);
  [...gallery.children].forEach((tile, index) => {
    const title = titleOf(index);
    tile.setAttribute("aria-label", title[0].toUpperCase() + title.slice(1));
    tile.setAttribute("aria-pressed", String(index === settings.image));
    tile.title = title;
  });
}

function choose(/** @type {number} */ image) {
  settings.image = image;
  history.replaceState(null, "", writeLink(settings));
  showGallery();
  inspectOne().catch(showProblem);
}

/** Sets the controls to the settings. */
function showSettings() {
  find("seed").value = String(settings.seed);
  find("count").value = String(settings.count);
  find("class").value = settings.label ?? "";
  about.dials.forEach((dial, place) => {
    const slider = find(`k-${dial.level}`);
    slider.value = settings.k[place];
    showK(slider, dial);
  });
}

function showK(slider, dial) {
  const text = describeK(Number(slider.value), dial);
  find(`k-${dial.level}-value`).textContent = text;
  slider.setAttribute("aria-valuetext", text);
}

function makeControls() {
  find("count").max = LARGEST_COUNT;
  find("class-field").hidden = !about.titles.length;
  const options = about.titles.map((title, label) => make("option", { value: label, textContent: title }));
  find("class").append(make("option", { value: "", textContent: "any" }), ...options);
  about.code_shapes.forEach((_, place) => {
    const level = place + 1;
    const dial = about.dials.find((each) => each.level === level);
    const density = make("span", { id: `density-${level}` });
    const row = make("div", { className: "level" });
    if (dial) {
      const slider = make("input", { type: "range", id: `k-${level}`, min: 1, max: dial.limit, step: 1 });
      slider.addEventListener("input", () => {
        showK(slider, dial);
        change({ k: about.dials.map((each) => Number(find(`k-${each.level}`).value)) });
      });
      row.append(make("label", { htmlFor: slider.id, textContent: `Sparsity (k) of Γ${level}` }), slider);
      row.append(make("p", {}, make("span", { id: `k-${level}-value` }), density));
    } else {
      row.append(make("p", {}, make("span", {}, `Γ${level} is not limited`), density));
    }
    find("levels").append(row);
  });
}

function listen() {
  find("settings").addEventListener("submit", (event) => event.preventDefault());
  find("seed").addEventListener("input", () => {
    const seed = readSeed(find("seed").value);
    find("seed").setAttribute("aria-invalid", String(seed === null));
    find("seed-problem").textContent = seed === null ? "The seed must be an integer from 0 to 2^64 - 1." : "";
    if (seed !== null) change({ seed });
  });
  find("new-seed").addEventListener("click", () => {
    find("seed").value = String(crypto.getRandomValues(new Uint32Array(1))[0]);
    find("seed").dispatchEvent(new Event("input"));
  });
  find("count").addEventListener("change", () => {
    const count = Math.min(LARGEST_COUNT, Math.max(1, Math.round(Number(find("count").value)) || 1));
    find("count").value = String(count);
    change({ count });
  });
  find("class").addEventListener("change", () => {
    const given = find("class").value;
    change({ label: given === "" ? null : Number(given) });
  });
  find("copy-link").addEventListener("click", async () => {
    try {
      await navigator.clipboard.writeText(location.href);
      showStatus("The link is copied.");
    } catch {
      showStatus("The browser does not allow copying: the address bar has the link.");
    }
  });
  find("save-grid").addEventListener("click", () => savePicture(`${fileName()}.png`, gridOf(images)));
  const notices = takePart("notices.txt");
  find("notices").addEventListener("click", async () => {
    try {
      saveFile("onnxruntime-third-party-notices.txt", new Blob([await readPart(notices)], { type: "text/plain" }));
    } catch (problem) {
      showProblem(problem);
    }
  });
  window.addEventListener("hashchange", openLink);
}

/** Takes the settings from the address. */
function openLink() {
  const { settings: given, problems } = readLink(location.hash, about);
  settings = given;
  showSettings();
  change({});
  showProblem(problems.join(" "));
}

async function start() {
  find("loading").remove();
  find("name").textContent = about.name;
  find("license").textContent = about.license
    ? `License of the weights: ${about.license}`
    : "The license of the weights is not recorded.";
  find("sparsity").textContent = describeSparsity(about);
  find("version").textContent = about.sparsegen;
  find("runtime-license").textContent = about.runtime_license;
  const missing = missingFeature();
  if (missing) {
    find("samples").hidden = find("inspector").hidden = true;
    return showProblem(missing);
  }
  makeControls();
  settings = readLink(location.hash, about).settings;
  showSettings();
  showGallery();
  find("save-grid").disabled = true;
  showStatus("Starting the network");
  client = startWorker();
  const parts = Object.fromEntries(PARTS.map((name) => [name, takePart(name)]));
  const { dictionary, shape } = await client.call("open", { about, parts }).catch((problem) => {
    throw new Error(`The network could not be started: ${problem.message}`);
  });
  inspector = new Inspector(about, client, dictionary, shape, showProblem);
  listen();
  openLink();
}

start().catch(showProblem);
