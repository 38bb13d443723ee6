// The address space as a ring: where in the container network ranges are taken, where the cursor stands and where
// the Service range lies.

import { address, colour, context, dotted, h, n } from "./dom.js";
import { paint } from "./space.js";
import { store } from "./store.js";

const FULL = 2 * Math.PI;
const TOP = -Math.PI / 2;

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
