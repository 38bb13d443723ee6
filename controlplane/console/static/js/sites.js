// Nodes by site: one dot for each node, so that ten thousand fit and one that lags is still seen.

import { colour, context, h, n, tip } from "./dom.js";
import { store } from "./store.js";

const NAMED = 24; // up to so many nodes in the largest site, they are shown by name
const TROUBLED = new Set(["unreachable", "silent", "fenced"]);

export class Sites {
  constructor(open) {
    this.open = open;
    this.element = h("div.sites", {});
    this.cards = new Map();
  }

  draw() {
    const groups = new Map();
    for (const node of store.nodes.values()) {
      const key = `${node.kind}\n${node.site}`;
      const group = groups.get(key);
      if (group) group.push(node); else groups.set(key, [node]);
    }
    const keys = [...groups.keys()].sort();
    for (const [key, card] of this.cards) if (!groups.has(key)) { card.element.remove(); this.cards.delete(key); }
    const largest = Math.max(1, ...[...groups.values()].map((group) => group.length));
    for (const key of keys) {
      let card = this.cards.get(key);
      if (!card) { card = this.card(key); this.cards.set(key, card); }
      if (this.element.children[keys.indexOf(key)] !== card.element) this.element.insertBefore(card.element, this.element.children[keys.indexOf(key)] ?? null);
      this.paint(card, groups.get(key), largest);
    }
    if (!keys.length) this.element.replaceChildren(h("p.empty", {}, "No nodes yet. A node joins with: isthmus agent"));
    else this.element.querySelector(".empty")?.remove();
  }

  card(key) {
    const [kind, site] = key.split("\n");
    const count = h("span.num", {});
    const canvas = h("canvas", { role: "img", onmousemove: (e) => this.hover(card, e), onmouseleave: () => tip(""), onclick: (e) => { const node = this.at(card, e); if (node) this.open(node.name); } });
    const card = { kind, site, count, canvas, nodes: [], names: h("ul.names", {}) };
    card.element = h("div.site", {}, h("h3", {}, h("span", { class: `k-${kind}` }, kind === "cloud" ? "☁" : "▦"), h("span.nowrap", {}, site || "no site"), count), canvas, card.names);
    return card;
  }

  paint(card, nodes, largest) {
    card.nodes = nodes;
    const named = largest <= NAMED;
    card.canvas.hidden = named;
    card.names.hidden = !named;
    if (named) { this.list(card, nodes); return; }
    const width = card.element.clientWidth || 230;
    const step = largest > 1500 ? 5 : largest > 300 ? 8 : largest > 60 ? 12 : 16;
    const columns = Math.max(1, Math.floor(width / step));
    const drawing = context(card.canvas, width, Math.max(step, Math.ceil(nodes.length / columns) * step));
    card.step = step;
    card.columns = columns;
    const base = colour(card.kind);
    let troubled = 0;
    let behind = 0;
    const side = step - (step > 6 ? 3 : 1);
    nodes.forEach((node, i) => {
      const bad = TROUBLED.has(node.state);
      const late = !bad && store.late(node);
      troubled += bad;
      behind += late;
      drawing.fillStyle = bad ? colour("bad") : late ? colour("draining") : base;
      drawing.globalAlpha = node.state === "unknown" || node.state === "unreported" ? 0.55 : 1;
      const x = (i % columns) * step;
      const y = Math.floor(i / columns) * step;
      if (step > 6) { drawing.beginPath(); drawing.roundRect(x, y, side, side, side / 3); drawing.fill(); }
      else drawing.fillRect(x, y, side, side);
    });
    const text = [`${n(nodes.length)}`, behind && `${n(behind)} behind`, troubled && `${n(troubled)} silent`].filter(Boolean).join(" · ");
    card.count.textContent = text;
    card.canvas.setAttribute("aria-label", `${card.site || "no site"}, ${card.kind}: ${text} nodes`);
  }

  list(card, nodes) {
    const state = (node) => (node.state === "ready" && store.late(node) ? "behind" : node.state);
    card.names.replaceChildren(...nodes.map((node) => h("li", {}, h("a", { href: `#/nodes/${encodeURIComponent(node.name)}`, title: `${node.range || "no range"}, ${node.announced}` },
      h("span", { class: `state ${state(node)}` }, h("i", { "aria-hidden": "true" }), node.name, h("span.hidden", {}, `, ${state(node)}`))))));
    card.count.textContent = n(nodes.length);
  }

  at(card, event) {
    const box = card.canvas.getBoundingClientRect();
    const column = Math.floor((event.clientX - box.left) / card.step);
    if (column >= card.columns) return undefined;
    return card.nodes[Math.floor((event.clientY - box.top) / card.step) * card.columns + column];
  }

  hover(card, event) {
    const node = this.at(card, event);
    if (!node) { tip(""); return; }
    const age = node.age_s >= 0 ? `, view ${node.applied < (store.at ?? store.head) ? `${n((store.at ?? store.head) - node.applied)} events behind` : "current"}` : "";
    tip(`${node.name}  ·  ${node.state}${age}\n${node.announced}\n${node.range || "no range"}\nkernel ${{ agrees: "agrees with the log", differs: "DIFFERS from the log", unchecked: "not compared yet", "": "not reported" }[node.kernel ?? ""]}${node.stale && node.kernel ? " when last heard" : ""}`, event);
  }
}
