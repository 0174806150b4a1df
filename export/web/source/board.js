// The map of one atom's coefficients, on which the visitor paints with a mouse, a pen, a finger or keys.

const POSITIVE = "245 158 11";
const NEGATIVE = "59 130 246";

export class Board {
  /**
   * @param {HTMLCanvasElement} map
   * @param {HTMLCanvasElement} picture Paintable too, except by touch, so that a finger can scroll the page there.
   * @param {number} height H of Γ1.
   * @param {number} width W of Γ1.
   * @param {{begin: () => void, paint: (cells: number[], erase: boolean) => void,
   *   move: (cell: number | null) => void}} on Called at the start of a stroke, with the painted cells (row·W + column),
   *   and with the cell under the cursor.
   */
  constructor(map, picture, height, width, on) {
    Object.assign(this, { map, height, width, on });
    this.scale = Math.ceil(384 / width);
    map.width = this.scale * width;
    map.height = this.scale * height;
    /** @type {{row: number, column: number} | null} The cursor of the keyboard. */
    this.cursor = null;
    this.showsCursor = false;
    this.brush = 1;
    for (const canvas of [map, picture]) this.listen(canvas, canvas === map);
    map.addEventListener("keydown", (event) => this.press(event));
    map.addEventListener("focus", () => {
      this.cursor ??= { row: height >> 1, column: width >> 1 };
      this.showsCursor = map.matches(":focus-visible"); // not after a click
      this.point();
    });
    map.addEventListener("blur", () => {
      this.showsCursor = false;
      this.on.move(null);
    });
  }

  listen(canvas, touchable) {
    /** @type {{row: number, column: number} | null} The last cell of the stroke. */
    let last = null;
    const cellAt = (event) => {
      const box = canvas.getBoundingClientRect();
      const inside = (share, size) => Math.min(size - 1, Math.max(0, Math.floor(share * size)));
      return {
        row: inside((event.clientY - box.top) / box.height, this.height),
        column: inside((event.clientX - box.left) / box.width, this.width),
      };
    };
    canvas.addEventListener("pointerdown", (event) => {
      if (event.button !== 0 || (event.pointerType === "touch" && !touchable)) return;
      canvas.setPointerCapture(event.pointerId);
      last = cellAt(event);
      this.cursor = last;
      this.on.begin();
      this.on.paint(this.around(last), false);
    });
    canvas.addEventListener("pointermove", (event) => {
      const cell = cellAt(event);
      this.on.move(cell.row * this.width + cell.column);
      if (!last) return;
      // A fast pointer skips cells: those on the line between are painted as well.
      const steps = Math.max(Math.abs(cell.row - last.row), Math.abs(cell.column - last.column), 1);
      const cells = new Set();
      for (let step = 1; step <= steps; step++) {
        const row = Math.round(last.row + ((cell.row - last.row) * step) / steps);
        const column = Math.round(last.column + ((cell.column - last.column) * step) / steps);
        for (const place of this.around({ row, column })) cells.add(place);
      }
      last = cell;
      this.on.paint([...cells], false);
    });
    for (const end of ["pointerup", "pointercancel"]) {
      canvas.addEventListener(end, () => {
        last = null;
      });
    }
    canvas.addEventListener("pointerleave", () => this.on.move(null));
  }

  press(/** @type {KeyboardEvent} */ event) {
    const moves = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1] };
    const paints = { " ": false, Enter: false, Delete: true, Backspace: true };
    if (event.key in moves) {
      const [down, right] = moves[event.key];
      const { row, column } = this.cursor;
      this.cursor = {
        row: Math.min(this.height - 1, Math.max(0, row + down)),
        column: Math.min(this.width - 1, Math.max(0, column + right)),
      };
    } else if (event.key in paints) {
      this.on.begin();
      this.on.paint(this.around(this.cursor), paints[event.key]);
    } else return;
    event.preventDefault();
    this.showsCursor = true;
    this.point();
  }

  /** Reports the cell under the cursor of the keyboard. */
  point() {
    this.on.move(this.cursor.row * this.width + this.cursor.column);
  }

  /** The cells under the brush. */
  around({ row, column }) {
    const cells = [];
    const before = (this.brush - 1) >> 1;
    for (let down = -before; down < this.brush - before; down++) {
      for (let right = -before; right < this.brush - before; right++) {
        const [y, x] = [row + down, column + right];
        if (y >= 0 && y < this.height && x >= 0 && x < this.width) cells.push(y * this.width + x);
      }
    }
    return cells;
  }

  /**
   * Draws the coefficients over the faded picture.
   * @param {Float32Array} coefficients Of one atom, shape (H, W).
   * @param {number} top The coefficient with full color.
   * @param {HTMLCanvasElement} picture
   */
  show(coefficients, top, picture) {
    const context = this.map.getContext("2d");
    const { scale, width } = this;
    context.imageSmoothingEnabled = false;
    context.fillStyle = "#0b0f0e";
    context.fillRect(0, 0, this.map.width, this.map.height);
    context.globalAlpha = 0.4;
    context.drawImage(picture, 0, 0, this.map.width, this.map.height);
    context.globalAlpha = 1;
    coefficients.forEach((value, place) => {
      if (value === 0) return;
      const alpha = 0.3 + 0.7 * Math.min(1, Math.abs(value) / top);
      context.fillStyle = `rgb(${value > 0 ? POSITIVE : NEGATIVE} / ${alpha})`;
      context.fillRect((place % width) * scale, Math.floor(place / width) * scale, scale, scale);
    });
    if (this.showsCursor) {
      const { row, column } = this.cursor;
      context.lineWidth = Math.max(2, scale / 4);
      context.strokeStyle = "#fff";
      context.strokeRect(column * scale, row * scale, scale, scale);
    }
  }
}
