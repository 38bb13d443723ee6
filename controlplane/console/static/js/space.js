// The address space as a map with one cell for each range, in rows like a hex dump, the long stretches of free
// rows folded into a line each.

import { address, colour, context, dotted, h, n, speak, tip } from "./dom.js";
import { PHASES, store } from "./store.js";

const KEYS = new Set(["ArrowRight", "ArrowLeft", "ArrowDown", "ArrowUp", "Home", "End", "n", "N", "Enter"]);
const HEIGHT = 400; // of the map, in pixels, where cells of two pixels allow it
const FOLD = 18; // pixels of a line that stands for free rows
const FOLDS = 8; // at most so many, the longest ones
const FOLDED = 4; // rows at least

export function rangeText(space, index) {
  const cidr = space.cidrs.find((c) => index >= c.first_index && index < c.first_index + c.capacity);
  if (!cidr) return "";
  const prefix = 32 - Math.log2(space.size);
  return `${dotted(address(cidr.cidr) + (index - cidr.first_index) * space.size)}/${prefix}`;
}

// The colour of a range, by state or by what its owner is.
export function paint(space, mode) {
  const phases = PHASES.map((name) => colour(name));
  if (mode === "state") return (index) => phases[space.phase[index]];
  const kinds = { cloud: colour("cloud"), external: colour("external") };
  return (index) => {
    const code = space.phase[index];
    if (code !== 1) return phases[code];
    return kinds[store.nodes.get(space.node.get(index))?.kind] ?? phases[1];
  };
}

export class Cells {
  constructor(open) {
    this.open = open;
    this.focused = -1;
    this.hovered = -1;
    this.canvas = h("canvas", {
      tabindex: "0", role: "application", "aria-roledescription": "address map",
      "aria-label": "Map of all ranges. Arrow keys move, Enter opens the owner, N goes to the next range that is not free.",
      onmousemove: (event) => this.hover(event), onmouseleave: () => this.leave(), onclick: (event) => this.click(event),
      onkeydown: (event) => this.key(event), onblur: () => { this.focused = -1; this.draw(this.mode); tip(""); },
    });
    this.element = h("div.cells", {}, this.canvas);
  }

  // Stretches of rows that are all free and are not where the next range comes from: [first row, row behind].
  folds(columns) {
    const { capacity, phase, cursor } = store.space;
    const rows = Math.ceil(capacity / columns);
    const found = [];
    let since = 0;
    for (let row = 0; row <= rows; row += 1) {
      let free = row < rows && Math.floor(cursor / columns) !== row;
      for (let index = row * columns; free && index < Math.min(capacity, (row + 1) * columns); index += 1) free = !phase[index];
      if (free) continue;
      if (row - since >= FOLDED) found.push([since, row]);
      since = row + 1;
    }
    return found.sort((a, b) => b[1] - b[0] - a[1] + a[0]).slice(0, FOLDS).sort((a, b) => a[0] - b[0]);
  }

  geometry(width) {
    const { capacity, version, cursor } = store.space;
    const key = `${store.at}/${version}/${cursor}/${capacity}/${width}`;
    if (this.g?.key === key) return this.g;
    const label = 92;
    // Rows of a power of two, so that they begin at round addresses; as large as fits the height.
    const of = (columns) => {
      const folds = this.folds(columns);
      const rows = Math.ceil(capacity / columns);
      const drawn = rows - folds.reduce((sum, [from, to]) => sum + to - from, 0);
      return { columns, folds, rows, side: Math.min(22, (width - label) / columns, (HEIGHT - FOLD * folds.length) / Math.max(1, drawn)) };
    };
    let best = of(8);
    while (best.columns < 2048) {
      const next = of(2 * best.columns);
      if (next.side < best.side) break;
      best = next;
    }
    const { columns, folds, rows, side } = best;
    const cell = Math.max(2, side);
    // Where each row begins, in pixels; rows of one fold begin where it does.
    const top = new Float64Array(rows + 1);
    let y = 0;
    let next = 0;
    for (let row = 0; row < rows; row += 1) {
      const fold = folds[next];
      top[row] = y;
      if (!fold || row < fold[0]) y += cell;
      else if (row === fold[1] - 1) { y += FOLD; next += 1; }
    }
    top[rows] = y;
    return { key, columns, folds, cell, label, rows, top, height: y, gap: cell >= 9 ? 2 : cell >= 4 ? 1 : 0 };
  }

  foldOf(index) {
    const row = Math.floor(index / this.g.columns);
    return this.g.folds.find(([from, to]) => row >= from && row < to);
  }

  draw(mode) {
    this.mode = mode;
    const space = store.space;
    const width = this.element.clientWidth;
    if (!space || !space.capacity || !width) return;
    const g = (this.g = this.geometry(width));
    const height = Math.ceil(g.height) + 2;
    const drawing = context(this.canvas, width, height);
    drawing.clearRect(0, 0, width, height);
    const fill = paint(space, mode);
    const side = Math.max(1, g.cell - g.gap);
    // One pass per colour: the canvas changes its brush a handful of times, not ten thousand.
    const groups = new Map();
    let fold = 0;
    for (let index = 0; index < space.capacity; index += 1) {
      if (fold < g.folds.length && index === g.folds[fold][0] * g.columns) {
        index = g.folds[fold][1] * g.columns - 1;
        fold += 1;
        continue;
      }
      const style = fill(index);
      const group = groups.get(style);
      if (group) group.push(index); else groups.set(style, [index]);
    }
    for (const [style, indices] of groups) {
      drawing.fillStyle = style;
      for (const index of indices) {
        drawing.fillRect(g.label + (index % g.columns) * g.cell, g.top[Math.floor(index / g.columns)], side, side);
      }
    }
    drawing.font = "10.5px ui-monospace, Menlo, 'DejaVu Sans Mono', monospace";
    drawing.textBaseline = "middle";
    for (const [from, to] of g.folds) {
      drawing.fillStyle = colour("free");
      drawing.fillRect(g.label, g.top[from] + 1, g.columns * g.cell - g.gap, FOLD - 2 - g.gap);
      drawing.fillStyle = colour("muted");
      drawing.fillText(`${n(this.inFold([from, to]))} free`, g.label + 8, g.top[from] + FOLD / 2 - 1);
    }
    // What is rare must be seen even where a cell is a few pixels.
    if (g.cell < 7) {
      for (const index of space.node.keys()) {
        if (space.phase[index] < 2) continue;
        const x = g.label + (index % g.columns) * g.cell + side / 2;
        const y = g.top[Math.floor(index / g.columns)] + side / 2;
        drawing.fillStyle = colour("panel");
        drawing.fillRect(x - 4, y - 4, 8, 8);
        drawing.fillStyle = fill(index);
        drawing.fillRect(x - 3, y - 3, 6, 6);
      }
    }
    drawing.fillStyle = colour("muted");
    for (let row = 0, clear = 0; row < g.rows && g.top[row] + 10 <= height; row += 1) {
      if (g.top[row] < clear || (row && g.top[row] === g.top[row - 1])) continue;
      clear = g.top[row] + 14;
      drawing.fillText(rangeText(space, row * g.columns).split("/")[0], 0, g.top[row] + (this.foldOf(row * g.columns) ? FOLD / 2 - 1 : Math.max(6, g.cell / 2)));
    }
    this.mark(drawing, space.cursor, colour("cursor"), 2);
    const shown = this.focused >= 0 ? this.focused : this.hovered;
    if (shown >= 0) this.mark(drawing, shown, colour("ink"), 2);
    this.canvas.setAttribute("aria-label", `Map of ${n(space.capacity)} ranges: ${this.summary()}. Arrow keys move, Enter opens the owner, N goes to the next range that is not free.`);
  }

  summary() {
    const pool = store.overview.pool;
    return `${n(pool.allocated)} allocated, ${n(pool.draining)} draining, ${n(pool.quarantined)} quarantined, ${n(pool.free)} free`;
  }

  mark(drawing, index, style, thick) {
    const g = this.g;
    if (index < 0 || index >= store.space.capacity) return;
    const side = Math.max(6, g.cell);
    drawing.strokeStyle = style;
    drawing.lineWidth = thick;
    const fold = this.foldOf(index);
    if (fold) { drawing.strokeRect(g.label, g.top[fold[0]] + 1, g.columns * g.cell - g.gap, FOLD - 2 - g.gap); return; }
    drawing.strokeRect(
      g.label + (index % g.columns) * g.cell - 1 - (side - g.cell) / 2,
      g.top[Math.floor(index / g.columns)] - 1 + (g.cell < 6 ? 0 : 0.5), side + (g.gap ? 2 - g.gap : 1), side + (g.gap ? 2 - g.gap : 1),
    );
  }

  indexAt(event) {
    const g = this.g;
    if (!g) return -1;
    const box = this.canvas.getBoundingClientRect();
    const column = Math.floor((event.clientX - box.left - g.label) / g.cell);
    const y = event.clientY - box.top;
    let [row, behind] = [0, g.rows];
    while (behind - row > 1) { const middle = (row + behind) >> 1; if (g.top[middle] <= y) row = middle; else behind = middle; }
    const index = row * g.columns + column;
    return column >= 0 && column < g.columns && index >= 0 && index < store.space.capacity ? index : -1;
  }

  inFold([from, to]) { return Math.min(store.space.capacity, to * this.g.columns) - from * this.g.columns; }

  describe(index) {
    const space = store.space;
    const fold = this.foldOf(index);
    if (fold) {
      const first = fold[0] * this.g.columns;
      return `${n(this.inFold(fold))} free ranges\n${rangeText(space, first)} to ${rangeText(space, first + this.inFold(fold) - 1)}`;
    }
    const phase = PHASES[space.phase[index]];
    const node = space.node.get(index);
    const kind = node && store.nodes.get(node)?.kind;
    const lines = [`${rangeText(space, index)}  ·  range ${n(index)}`, node ? `${phase}${phase === "allocated" ? " to" : ", last of"} ${node}${kind ? ` (${kind})` : ""}` : phase];
    if (node) lines.push(`epoch ${n(space.epoch.get(index))}`);
    if (index === space.cursor) lines.push("the cursor: the next search starts here");
    return lines.join("\n");
  }

  hover(event) {
    const index = this.indexAt(event);
    tip(index < 0 ? "" : this.describe(index), event);
    if (index !== this.hovered) { this.hovered = index; this.draw(this.mode); }
  }

  leave() { this.hovered = -1; tip(""); this.draw(this.mode); }

  click(event) {
    const node = store.space?.node.get(this.indexAt(event));
    if (node) this.open(node);
  }

  key(event) {
    // Focus may come before the ranges do: whoever is fast, or on a slow link, is told so.
    if (!KEYS.has(event.key)) return;
    if (!store.space || !this.g) { event.preventDefault(); speak("The map is not loaded yet"); return; }
    if (!store.space.capacity) { event.preventDefault(); speak("There are no ranges yet"); return; }
    const { columns } = this.g;
    const last = store.space.capacity - 1;
    const steps = { ArrowRight: 1, ArrowLeft: -1, ArrowDown: columns, ArrowUp: -columns, Home: -Infinity, End: Infinity };
    let index = this.focused < 0 ? 0 : this.focused;
    if (event.key in steps) {
      const by = steps[event.key];
      const from = index;
      if (this.focused >= 0 || Math.abs(by) === Infinity) index = Math.max(0, Math.min(last, index + by));
      // What is folded is one stop: the next step leads out of it.
      const fold = Math.abs(by) !== Infinity && this.focused >= 0 && this.foldOf(from);
      if (fold) {
        const out = by > 0 ? fold[1] * columns : fold[0] * columns - 1;
        index = out < 0 || out > last ? from : out;
      }
    }
    else if (event.key === "n" || event.key === "N") {
      for (let i = 1; i <= last + 1; i += 1) if (store.space.phase[(this.focused + i) % (last + 1)]) { index = (this.focused + i) % (last + 1); break; }
    } else if (event.key === "Enter" && this.focused >= 0) { const node = store.space.node.get(this.focused); if (node) this.open(node); return; }
    event.preventDefault();
    this.focused = index;
    this.draw(this.mode);
    const box = this.canvas.getBoundingClientRect();
    const g = this.g;
    tip(this.describe(index), { clientX: box.left + g.label + (index % g.columns) * g.cell, clientY: box.top + g.top[Math.floor(index / g.columns)] });
    speak(this.describe(index).replaceAll("\n", ", "));
  }
}

