// The time slider: the whole log as small bars (joins up, leaves and refusals down), and where we stand in it.

import { $, ago, colour, context, h, moment, n } from "./dom.js";
import { store } from "./store.js";

export class Timeline {
  constructor(go) {
    this.go = go;
    this.buckets = [];
    this.head = 0;
    this.canvas = h("canvas", { "aria-hidden": "true" });
    this.slider = h("input", { type: "range", id: "slider", min: 0, step: 1, "aria-label": "Sequence shown",
      oninput: () => this.slide(), onchange: () => this.settle() });
    this.where = h("div.where", {});
    this.liveButton = h("button.plain", { type: "button", onclick: () => go(null) }, "Live");
    this.back = h("button.icon", { type: "button", "aria-label": "One event back", title: "One event back", onclick: () => this.step(-1) }, "◀");
    this.forth = h("button.icon", { type: "button", "aria-label": "One event forward", title: "One event forward", onclick: () => this.step(1) }, "▶");
    $("time").append(h("div.steps", {}, this.back, this.forth, this.liveButton), h("div.track", {}, this.canvas, this.slider), this.where);
    new ResizeObserver(() => this.draw()).observe($("time"));
  }

  async load() {
    try {
      const timeline = await store.get("timeline?buckets=300");
      this.buckets = timeline.buckets;
      this.head = timeline.head;
      this.stale = Date.now();
      this.show();
    } catch { /* the link's state says it */ }
  }

  // The stream says that the log has grown: the bars follow every few seconds, the end at once.
  grown() {
    if (!this.timer && store.head > (this.buckets.at(-1)?.sequence ?? 0)) {
      this.timer = setTimeout(() => { this.timer = 0; this.load(); }, 3000);
    }
    this.show();
  }

  step(by) { this.go(Math.max(0, (store.at ?? store.head) + by)); }

  slide() {
    const at = Number(this.slider.value);
    store.travel(at >= store.head ? null : at, { brief: true });
  }

  settle() {
    const at = Number(this.slider.value);
    store.travel(at >= store.head ? null : at);
    this.go(store.at);
  }

  show() {
    const at = store.at ?? store.head;
    this.slider.max = store.head;
    this.slider.value = at;
    const time = store.overview?.position.sequence === at ? store.overview?.position.at : null;
    this.slider.setAttribute("aria-valuetext", store.live ? `Live, sequence ${at}` : `Sequence ${at}, ${moment(time, true)}`);
    this.where.replaceChildren(
      h("div", {}, "Event ", h("b", {}, n(at)), h("span.muted", {}, ` of ${n(store.head)}`)),
      h("div.muted", {}, store.live ? (time ? `last ${ago(time)}` : "live") : time ? `${moment(time, true)}` : "…"),
    );
    this.liveButton.disabled = store.live;
    this.liveButton.classList.toggle("primary", !store.live);
    this.back.disabled = at <= 0;
    this.forth.disabled = store.live;
    this.draw();
  }

  draw() {
    const box = this.canvas.parentElement.getBoundingClientRect();
    if (!box.width) return;
    const drawing = context(this.canvas, box.width, 44);
    drawing.clearRect(0, 0, box.width, 44);
    const inset = 6;
    const width = box.width - 2 * inset;
    const x = (sequence) => inset + (sequence / Math.max(1, store.head)) * width;
    drawing.fillStyle = colour("line");
    drawing.fillRect(inset, 26, width, 1);
    const sum = (b) => b.joins + b.others;
    const top = Math.max(1, ...this.buckets.map(sum));
    const low = Math.max(1, ...this.buckets.map((b) => b.leaves + b.refusals));
    let from = 0;
    for (const bucket of this.buckets) {
      const left = x(from);
      const bar = Math.max(1, x(bucket.sequence) - left - (width / this.buckets.length > 4 ? 1 : 0.3));
      const up = (bucket.joins / top) * 22;
      const other = (bucket.others / top) * 22;
      drawing.fillStyle = colour("allocated");
      drawing.fillRect(left, 25 - up, bar, up);
      drawing.globalAlpha = 0.35;
      drawing.fillRect(left, 25 - up - other, bar, other);
      drawing.globalAlpha = 1;
      const down = (bucket.leaves / low) * 13;
      drawing.fillStyle = colour("draining");
      drawing.fillRect(left, 28, bar, down);
      drawing.fillStyle = colour("bad");
      drawing.fillRect(left, 28 + down, bar, (bucket.refusals / low) * 13);
      from = bucket.sequence;
    }
    if (!store.live) {
      drawing.fillStyle = colour("bg");
      drawing.globalAlpha = 0.6;
      drawing.fillRect(x(store.at), 0, box.width - x(store.at), 44);
      drawing.globalAlpha = 1;
    }
  }
}
