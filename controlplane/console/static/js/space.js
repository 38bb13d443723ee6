// The address space: a ring that shows where in the container network ranges are taken, where the cursor
// stands and where the Service range lies; and a map with one cell for each range, in rows like a hex dump, the
// long stretches of free rows folded into a line each.

import { address, colour, context, dotted, h, n, speak, tip } from "./dom.js";
import { PHASES, store } from "./store.js";

const FULL = 2 * Math.PI;
const TOP = -Math.PI / 2;
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
function paint(space, mode) {
  const phases = PHASES.map((name) => colour(name));
  if (mode === "state") return (index) => phases[space.phase[index]];
  const kinds = { cloud: colour("cloud"), external: colour("external") };
  return (index) => {
    const code = space.phase[index];
    if (code !== 1) return phases[code];
    return kinds[store.nodes.get(space.node.get(index))?.kind] ?? phases[1];
  };
}

function hatch(drawing, fill) {
  const tile = document.createElement("canvas");
  tile.width = tile.height = 12;
  const pen = tile.getContext("2d");
  pen.fillStyle = fill;
  pen.globalAlpha = 0.38;
  pen.fillRect(0, 0, 12, 12);
  pen.globalAlpha = 1;
  pen.strokeStyle = fill;
  pen.lineWidth = 2.5;
  pen.beginPath();
  for (const offset of [-12, 0, 12]) { pen.moveTo(offset, 12); pen.lineTo(offset + 12, 0); }
  pen.stroke();
  return drawing.createPattern(tile, "repeat");
}

// Of the ranges from one index up to another: one of the most frequent taken kind (-1: all are free), and the
// share that is taken, in quarters.
function most(space, from, to) {
  const counts = [0, 0, 0, 0];
  const firsts = [-1, -1, -1, -1];
  for (let index = from; index < to; index += 1) {
    const code = space.phase[index];
    if (!counts[code]) firsts[code] = index;
    counts[code] += 1;
  }
  const code = [1, 2, 3].reduce((best, next) => (counts[next] > counts[best] ? next : best));
  return { at: firsts[code], share: Math.ceil((4 * (to - from - counts[0])) / (to - from)) / 4 };
}

export class Ring {
  constructor() {
    this.canvas = h("canvas", { "aria-hidden": "true" });
    this.big = h("b", {});
    this.small = h("span", {});
    this.next = h("span", {});
    this.element = h("div.ring", {}, this.canvas, h("div.middle", {}, this.big, this.small, this.next));
  }

  // Arcs in proportion to addresses; each container CIDR is a stretch, the Service range ends the first.
  layout(space) {
    const stretches = [];
    let total = 0;
    space.cidrs.forEach((cidr, i) => {
      const addresses = 2 ** (32 - Number(cidr.cidr.split("/")[1]));
      stretches.push({ cidr, addresses, start: total, service: i === 0 ? 2 ** (32 - Number(space.service.split("/")[1])) : 0 });
      total += addresses;
    });
    return { stretches, total };
  }

  draw(mode) {
    const space = store.space;
    const size = this.element.clientWidth || 320;
    const drawing = context(this.canvas, size, size);
    drawing.clearRect(0, 0, size, size);
    const middle = size / 2;
    const outer = size / 2 - 14;
    const width = Math.max(22, size * 0.085);
    if (!space || !space.capacity) return;
    const { stretches, total } = this.layout(space);
    const gap = stretches.length > 1 ? 0.02 : 0.006;
    const turn = (value) => TOP + (value / total) * FULL;
    const arc = (from, to, radius, thick, style, alpha = 1) => {
      if (to <= from) return; // swallowed by the gap between CIDRs: a canvas would draw the whole circle
      drawing.globalAlpha = alpha;
      drawing.beginPath();
      drawing.arc(middle, middle, radius, from, to);
      drawing.lineWidth = thick;
      drawing.strokeStyle = style;
      drawing.stroke();
      drawing.globalAlpha = 1;
    };
    const fill = paint(space, mode);
    const free = colour("free");
    const radius = outer - width / 2 - 6;
    for (const { cidr, addresses, start, service } of stretches) {
      const from = turn(start) + gap / 2;
      const to = turn(start + addresses) - gap / 2;
      arc(from, to, radius, width, free);
      arc(from, to, outer + 1, 2, colour("line"));
      // Neighbours of one colour become one arc; at most one arc for each half pixel of the ring. Where several
      // ranges share that, most of the taken ones decide its colour, and how many are taken its strength.
      const bins = Math.min(cidr.capacity, Math.ceil((to - from) * radius * 2));
      const per = cidr.capacity / bins;
      const place = (bin) => turn(start + Math.min(addresses, bin * per * space.size));
      let open = 0;
      let style = null;
      let strength = 0;
      for (let bin = 0; bin <= bins; bin += 1) {
        const { at, share } = bin < bins ? most(space, cidr.first_index + Math.floor(bin * per), cidr.first_index + Math.ceil((bin + 1) * per)) : { at: -1, share: 0 };
        const own = at < 0 ? null : fill(at);
        if (own !== style || share !== strength) {
          if (style) arc(Math.max(from, place(open)), Math.min(to, place(bin)), radius, width, style, 0.25 + 0.75 * strength);
          open = bin;
          style = own;
          strength = share;
        }
      }
      // What is rare is seen, too: a mark at the rim, where its own stretch is too short for an eye.
      for (const [index] of space.node) {
        if (space.phase[index] < 2 || index < cidr.first_index || index >= cidr.first_index + cidr.capacity) continue;
        const at = turn(start + (index - cidr.first_index) * space.size);
        const end = turn(start + (index + 1 - cidr.first_index) * space.size);
        if ((end - at) * radius >= 2) arc(at, end, radius, width, fill(index));
        else arc(at, Math.max(end, at + 1 / radius), radius + width * 0.35, width * 0.3, fill(index));
      }
      if (service) arc(turn(start + addresses - service), to, radius, width, hatch(drawing, colour("service")));
    }
    this.cursor(drawing, space, stretches, turn, middle, outer, width);
    this.ticks(drawing, stretches, turn, middle, outer - width - 14);
    const pool = store.overview.pool;
    this.big.textContent = n(pool.free);
    this.small.textContent = `of ${n(pool.capacity)} ranges free`;
    this.next.textContent = pool.next_range ? `next ${pool.next_range}` : "pool exhausted";
  }

  cursor(drawing, space, stretches, turn, middle, outer, width) {
    const cidr = stretches.find(({ cidr: c }) => space.cursor >= c.first_index && space.cursor < c.first_index + c.capacity) ?? stretches[0];
    const angle = turn(cidr.start + (space.cursor - cidr.cidr.first_index) * space.size);
    drawing.save();
    drawing.translate(middle, middle);
    drawing.rotate(angle);
    drawing.strokeStyle = drawing.fillStyle = colour("cursor");
    drawing.lineWidth = 2;
    drawing.beginPath();
    drawing.moveTo(outer - width - 8, 0);
    drawing.lineTo(outer + 2, 0);
    drawing.stroke();
    drawing.beginPath();
    drawing.moveTo(outer + 1, 0);
    drawing.lineTo(outer + 12, -6);
    drawing.lineTo(outer + 12, 6);
    drawing.fill();
    drawing.restore();
  }

  ticks(drawing, stretches, turn, middle, radius) {
    drawing.fillStyle = colour("muted");
    drawing.font = "10px ui-monospace, Menlo, 'DejaVu Sans Mono', monospace";
    drawing.textAlign = "center";
    drawing.textBaseline = "middle";
    const shares = stretches.length === 1 ? [0.125, 0.375, 0.625, 0.875] : [0.5];
    for (const { cidr, addresses, start } of stretches) {
      for (const share of shares) {
        const angle = turn(start + share * addresses);
        const text = dotted(address(cidr.cidr) + share * addresses);
        const inset = 10 + Math.abs(Math.cos(angle)) * 22;
        drawing.fillText(text, middle + Math.cos(angle) * (radius - inset), middle + Math.sin(angle) * (radius - inset));
        drawing.beginPath();
        drawing.moveTo(middle + Math.cos(angle) * (radius + 4), middle + Math.sin(angle) * (radius + 4));
        drawing.lineTo(middle + Math.cos(angle) * (radius + 10), middle + Math.sin(angle) * (radius + 10));
        drawing.strokeStyle = colour("muted");
        drawing.lineWidth = 1;
        drawing.stroke();
      }
    }
  }
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

