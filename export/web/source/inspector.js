// The code inspector: the picture of an edited code, its atoms, and its density.

import { Board } from "./board.js";
import { newestOnly } from "./client.js";
import { atomPicture, atomUse, countNonZeros, difference, Edits, heatMap } from "./code.js";
import { find, make, paintImage } from "./dom.js";
import { jsonFile, npyFile, saveFile, savePicture } from "./files.js";

const SHOWN_ATOMS = 16;

/**
 * @typedef {object} Inspected One image.
 * @property {string} key The image without its k: edits are kept while only k changes.
 * @property {string} title E.g. "image 3, cat".
 * @property {string} file Start of the names of saved files.
 * @property {object} origin Model, seed, index, class and k, for the JSON file.
 * @property {number[]} k One per projected level.
 * @property {Float32Array[]} codes Γ1, Γ2, …, each of shape (C, H, W).
 * @property {Uint8ClampedArray} pixels RGBA, shape (side, side, 4).
 */

export class Inspector {
  /**
   * @param {object} about The facts of the model.
   * @param {import("./client.js").Client} client
   * @param {Float32Array} dictionary Shape (C, 3, h, w).
   * @param {number[]} shape [C, 3, h, w].
   * @param {(problem: unknown) => void} fail
   */
  constructor(about, client, dictionary, shape, fail) {
    Object.assign(this, { about, client, dictionary, shape });
    const [atoms, height, width] = about.code_shapes[0];
    Object.assign(this, { atoms, size: height * width, width });
    /** @type {Inspected | null} */
    this.shown = null;
    this.edits = new Edits();
    this.atom = null;
    this.allAtoms = false;
    this.top = 0;
    this.hovered = null;
    this.refresh = newestOnly(async () => {
      const { shown, edits } = this;
      this.edited = edits.apply(shown.codes[0], this.size);
      this.showMap();
      const { pixels } = edits.isEmpty ? shown : await client.call("synthesize", { code: this.edited });
      if (this.shown === shown) this.showResult(pixels);
    });
    const update = () => this.refresh().catch(fail);
    this.update = update;
    this.board = new Board(find("map"), find("picture"), height, width, {
      begin: () => this.edits.beginStroke(),
      paint: (cells, erase) => {
        const value = erase || find("eraser").checked ? 0 : Number(find("strength").value);
        for (const cell of cells) this.edits.painted.set(this.atom * this.size + cell, value);
        update();
      },
      move: (cell) => {
        this.hovered = cell;
        this.showCursor();
        if (this.shown) this.showMap();
      },
    });
    find("brush").addEventListener("change", () => this.setBrush());
    this.setBrush();
    find("strength").addEventListener("input", () => this.showStrength());
    find("undo").addEventListener("click", () => {
      this.edits.undo();
      update();
    });
    find("reset").addEventListener("click", () => {
      this.edits = new Edits();
      this.showAtoms();
      update();
    });
    find("all-atoms").hidden = atoms <= SHOWN_ATOMS;
    find("all-atoms").addEventListener("click", () => {
      this.allAtoms = !this.allAtoms;
      this.showAtoms();
    });
    find("save-picture").addEventListener("click", () => savePicture(`${this.fileName()}.png`, find("picture")));
    find("save-npy").addEventListener("click", () => {
      saveFile(`${this.fileName()}.npy`, npyFile(this.edited, [1, ...about.code_shapes[0]]));
    });
    find("save-json").addEventListener("click", () => {
      saveFile(`${this.fileName()}.json`, jsonFile(this.edited, about.code_shapes[0], this.shown.origin));
    });
  }

  fileName() {
    return this.shown.file + (this.edits.isEmpty ? "" : "-edited");
  }

  /** Inspects an image. */
  show(/** @type {Inspected} */ inspected) {
    if (inspected.key !== this.shown?.key) this.edits = new Edits();
    this.shown = inspected;
    find("inspector-title").textContent = `Code inspector: ${inspected.title}`;
    this.used = atomUse(inspected.codes[0], this.dictionary, this.atoms);
    this.atom ??= this.used[0].atom;
    this.setRange(Math.max(...this.used.map(({ peak }) => Math.abs(peak))));
    this.showAtoms();
    this.update();
  }

  /** Sets the range of the strength once, by the largest coefficient of the first image. */
  setRange(/** @type {number} */ peak) {
    if (this.top) return;
    const range = 2 * (peak || 1);
    const unit = 10 ** Math.floor(Math.log10(range));
    this.top = Math.ceil(range / unit) * unit;
    Object.assign(find("strength"), { min: -this.top, max: this.top, step: this.top / 40, value: this.top / 2 });
    this.showStrength();
  }

  setBrush() {
    this.board.brush = Number(find("brush").value);
  }

  showStrength() {
    find("strength-value").textContent = Number(find("strength").value).toFixed(2);
  }

  showMap() {
    const start = this.atom * this.size;
    const coefficients = this.edited.subarray(start, start + this.size);
    this.board.show(coefficients, this.top / 2, find("picture"));
    const used = coefficients.reduce((count, value) => count + (value !== 0), 0);
    find("map").setAttribute("aria-label", `Map of the coefficients of atom ${this.atom}`);
    find("map-note").textContent =
      `Map of atom #${this.atom}: ${used} of ${this.size} coefficients are not zero ` + "(orange: positive, blue: negative)";
  }

  showCursor() {
    const cell = this.hovered;
    const value = cell === null ? null : this.edited?.[this.atom * this.size + cell];
    find("cursor").textContent =
      value == null
        ? "Point at the map to read a coefficient."
        : `Row ${Math.floor(cell / this.width)}, column ${cell % this.width}: coefficient ${value.toFixed(2)}`;
  }

  /** Shows the picture of the edited code, and what the edits change. */
  showResult(/** @type {Uint8ClampedArray} */ pixels) {
    const side = this.about.image_size;
    const picture = find("picture");
    paintImage(picture, new ImageData(pixels, side));
    picture.setAttribute("aria-label", `The picture, ${this.shown.title}`);
    const change = difference(this.shown.pixels, pixels, side);
    const edited = !this.edits.isEmpty;
    find("picture-note").textContent = edited
      ? `The picture of the edited code: pixels change by ${change.mean.toFixed(1)} of 255 on average, ${change.peak} at most`
      : `The picture, ${side} × ${side} pixels`;
    find("undo").disabled = !this.edits.strokes.length;
    find("reset").disabled = !edited;
    this.showMap();
    this.showCursor();
    this.showDensities(edited ? change : null);
  }

  showDensities(change) {
    const figures = this.shown.codes.map((drawn, place) => {
      const [channels, height, width] = this.about.code_shapes[place];
      const counts = countNonZeros(place === 0 ? this.edited : drawn, height * width);
      const [low, high] = [Math.min(...counts), Math.max(...counts)];
      const dial = this.about.dials.findIndex(({ level, unit }) => level === place + 1 && unit === "needle");
      const top = Math.max(dial < 0 ? high : this.shown.k[dial], 1);
      const mean = counts.reduce((sum, count) => sum + count, 0) / counts.length;
      const spread = low === high ? `${high} in each` : `${low} to ${high}, ${mean.toFixed(1)} on average`;
      const canvas = make("canvas");
      paintImage(canvas, heatMap(counts, top, width));
      canvas.setAttribute("role", "img");
      canvas.setAttribute("aria-label", `Non-zeros per position of Γ${place + 1}`);
      return make(
        "figure",
        {},
        canvas,
        make("div", { className: "scale" }, "0", make("i"), String(top)),
        make("figcaption", {}, `Γ${place + 1}: non-zeros of ${channels} at each position: ${spread}`),
      );
    });
    if (change) {
      const canvas = make("canvas");
      paintImage(canvas, change.image);
      canvas.setAttribute("role", "img");
      canvas.setAttribute("aria-label", "Difference of the edited picture");
      const caption = `Difference of the edited picture, contrast × ${(127.5 / (change.peak || 1)).toFixed(1)}`;
      figures.push(make("figure", {}, canvas, make("figcaption", {}, caption)));
    }
    find("densities").replaceChildren(...figures);
  }

  /** Shows the strongest atoms of the drawn code, or all of them. */
  showAtoms() {
    const inUse = this.used.filter(({ share }) => share > 0);
    const shown = this.allAtoms ? this.used : this.used.slice(0, SHOWN_ATOMS);
    const share = shown.reduce((sum, each) => sum + each.share, 0);
    const [, , height, width] = this.shape;
    find("atoms-note").textContent =
      `The image uses ${inUse.length} of ${this.atoms} atoms; those shown have ${(100 * share).toFixed(0)} % of its energy. ` +
      `An atom has ${height} × ${width} pixels; gray is zero. Below it: its share, and its largest coefficient.`;
    find("atoms").replaceChildren(...shown.map((each) => this.atomCard(each)));
    const button = find("all-atoms");
    button.textContent = this.allAtoms ? `Show the ${SHOWN_ATOMS} strongest atoms` : `Show all ${this.atoms} atoms`;
    button.setAttribute("aria-pressed", String(this.allAtoms));
  }

  atomCard({ atom, share, peak }) {
    const canvas = make("canvas");
    paintImage(canvas, atomPicture(this.dictionary, this.shape, atom));
    canvas.setAttribute("aria-hidden", "true");
    const button = make(
      "button",
      { type: "button", title: `Paint with atom ${atom}` },
      canvas,
      make("b", {}, make("span", { className: "unseen" }, "Paint with atom "), `#${atom}`),
      make("span", {}, `${(100 * share).toFixed(1)} %`, make("br"), peak.toFixed(2)),
    );
    button.setAttribute("aria-pressed", String(atom === this.atom));
    button.addEventListener("click", () => {
      this.atom = atom;
      for (const other of find("atoms").querySelectorAll("button")) {
        other.setAttribute("aria-pressed", String(other === button));
      }
      this.showMap();
    });
    const box = make("input", { type: "checkbox", checked: !this.edits.off.has(atom) });
    box.addEventListener("change", () => {
      if (box.checked) this.edits.off.delete(atom);
      else this.edits.off.add(atom);
      this.update();
    });
    const label = make("label", {}, box, "on", make("span", { className: "unseen" }, `: atom ${atom}`));
    const card = make("div", { className: "atom" }, button, label);
    card.dataset.atom = atom;
    return card;
  }
}
