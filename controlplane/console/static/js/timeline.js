// The time slider: the whole log as small bars (joins up, leaves and refusals down), and where we stand in it.
// It runs over events or over time, and takes an event's number or a moment by keyboard.

import { $, ago, colour, context, h, moment, n } from "./dom.js";
import { store } from "./store.js";

const HEIGHT = 44;

// What a person types: "812", "14:05", "14:05:30", "2026-11-25 14:05" (local time), or RFC 3339.
export function parse(text) {
  const typed = text.trim().replace(/^#/, "");
  if (/^\d+$/.test(typed)) return { at: Number(typed) };
  const clock = typed.match(/^(\d{1,2}):(\d\d)(?::(\d\d))?$/);
  const date = clock ? new Date() : new Date(typed.replace(/^(\d{4}-\d\d-\d\d) (\d)/, "$1T$2"));
  if (clock) {
    if (Number(clock[1]) > 23 || Number(clock[2]) > 59) return null;
    date.setHours(Number(clock[1]), Number(clock[2]), Number(clock[3] ?? 0), 0);
    if (date > new Date()) date.setDate(date.getDate() - 1);
  }
  return /\d{4}|:/.test(typed) && !Number.isNaN(date.getTime()) ? { time: date.toISOString() } : null;
}

export class Timeline {
  constructor(go) {
    this.go = go;
    this.buckets = [];
    this.head = 0;
    this.byTime = localStorage.getItem("isthmus.timeline") === "time";
    this.canvas = h("canvas", { "aria-hidden": "true" });
    this.slider = h("input", { type: "range", id: "slider", min: 0, step: 1, oninput: () => this.slide(), onchange: () => this.settle(), onkeydown: (event) => this.key(event) });
    this.where = h("div.where", {});
    this.liveButton = h("button.plain", { type: "button", onclick: () => go({}) }, "Live");
    this.back = h("button.icon", { type: "button", "aria-label": "One command back", title: "One command back", onclick: () => this.step(-1) }, "◀");
    this.forth = h("button.icon", { type: "button", "aria-label": "One command forward", title: "One command forward", onclick: () => this.step(1) }, "▶");
    this.jump = h("input", { type: "text", id: "jump", placeholder: "812, 14:05", "aria-label": "Go to an event's number or a time", autocomplete: "off", spellcheck: false, oninput: () => this.jump.setCustomValidity("") });
    const form = h("form.jump", { onsubmit: (event) => { event.preventDefault(); this.leap(); } }, this.jump, h("button.plain", { type: "submit" }, "Go"));
    this.axis = h("div.seg", { role: "group", "aria-label": "Slide over" }, this.choice("events", false), this.choice("time", true));
    $("time").append(h("div.steps", {}, this.back, this.forth, this.liveButton, this.axis), h("div.track", {}, this.canvas, this.slider), h("div.right", {}, this.where, form));
    new ResizeObserver(() => this.draw()).observe($("time"));
  }

  choice(text, byTime) {
    return h("button", { type: "button", "aria-pressed": String(this.byTime === byTime), onclick: (event) => {
      this.byTime = byTime;
      localStorage.setItem("isthmus.timeline", text);
      for (const other of event.target.parentElement.children) other.setAttribute("aria-pressed", String(other === event.target));
      this.show();
    } }, text);
  }

  async load() {
    try {
      const timeline = await store.get("timeline?buckets=300");
      this.buckets = timeline.buckets;
      this.head = timeline.head;
      this.begins = timeline.begins ? Date.parse(timeline.begins) : 0;
      this.grown();
    } catch { /* the link's state says it */ }
  }

  // The stream says that the log has grown: the bars follow every few seconds, the end at once.
  grown() {
    this.again();
    this.show();
  }

  // Bars that end before the log does: it has grown, or the read model was still behind when it was asked.
  again() {
    if (this.timer || Math.max(this.head, store.head) <= (this.buckets.at(-1)?.sequence ?? 0)) return;
    this.timer = setTimeout(() => { this.timer = 0; this.load(); }, 3000);
  }

  // One command back or forth: between two events of one command only a part of what it did is seen. Steps taken
  // faster than the answers come follow each other.
  step(by) {
    this.stepping = (this.stepping ?? Promise.resolve()).then(async () => {
      const at = store.at ?? store.head;
      const to = by < 0 ? (await this.command(at)).first - 1 : (await this.command(at + 1)).last;
      this.go(to >= store.head ? {} : { at: Math.max(0, to) });
      await store.travel(to >= store.head ? null : Math.max(0, to));
    }).catch(() => { /* the link's state says it */ });
  }

  async command(sequence) {
    if (sequence < 1 || sequence > store.head) return { first: sequence, last: Math.min(sequence, store.head) };
    return store.get(`events/${sequence}`);
  }

  key(event) {
    const by = { ArrowLeft: -1, ArrowDown: -1, ArrowRight: 1, ArrowUp: 1 }[event.key];
    if (!by || this.byTime) return;
    event.preventDefault();
    this.step(by);
  }

  leap() {
    const when = parse(this.jump.value);
    if (!when) {
      this.jump.setCustomValidity("An event's number, a time like 14:05, or 2026-11-25 14:05");
      this.jump.reportValidity();
      return;
    }
    this.go(when.at >= store.head || (when.time && Date.parse(when.time) >= Date.now()) ? {} : when);
    this.jump.value = "";
  }

  // Where the slider stands, as the place to go to.
  pointed() {
    const value = Number(this.slider.value);
    if (value >= Number(this.slider.max)) return {};
    return this.byTime ? { time: new Date(this.begins + value * 1000).toISOString() } : { at: value };
  }

  slide() {
    const { at = null, time = null } = this.pointed();
    store.travel(at, { brief: true, time });
  }

  // Where the slider is let go of: the end of the command there.
  async settle() {
    const { at: pointed = null, time = null } = this.pointed();
    const at = pointed === null ? null : (await this.command(pointed).catch(() => ({ last: pointed }))).last;
    store.travel(at, { time });
    this.go(at !== null && at >= store.head ? {} : { at, time });
  }

  // The moment shown: the one asked for, else that of the event.
  get moment() {
    const position = store.overview?.position;
    if (store.live || !position) return Date.now();
    return Date.parse(store.time ?? position.at ?? position.moment);
  }

  show() {
    const at = store.at ?? store.head;
    const shown = store.overview?.position.sequence === at ? store.overview.position.at : null;
    if (this.byTime && this.begins) {
      this.slider.max = Math.max(1, Math.ceil((Date.now() - this.begins) / 1000));
      this.slider.value = store.live ? this.slider.max : (this.moment - this.begins) / 1000;
    } else {
      this.slider.max = store.head;
      this.slider.value = at;
    }
    const time = store.live ? shown : store.time ?? shown;
    this.slider.setAttribute("aria-label", this.byTime ? "Time shown" : "Sequence shown");
    this.slider.setAttribute("aria-valuetext", store.live ? `Live, sequence ${at}` : `Sequence ${at}, ${moment(time, true)}`);
    this.where.replaceChildren(
      h("div", {}, "Event ", h("b", {}, n(at)), h("span.muted", {}, ` of ${n(store.head)}`)),
      h("div.muted", {}, store.live ? (time ? `last ${ago(time)}` : "live") : time ? moment(time, true) : "…"),
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
    const drawing = context(this.canvas, box.width, HEIGHT);
    drawing.clearRect(0, 0, box.width, HEIGHT);
    const inset = 6;
    const width = box.width - 2 * inset;
    const byTime = this.byTime && this.begins;
    const span = byTime ? Math.max(1000, Date.now() - this.begins) : Math.max(1, store.head);
    const x = (value) => inset + Math.min(1, Math.max(0, (byTime ? value - this.begins : value) / span)) * width;
    drawing.fillStyle = colour("line");
    drawing.fillRect(inset, 26, width, 1);
    const top = Math.max(1, ...this.buckets.map((b) => b.joins + b.others));
    const low = Math.max(1, ...this.buckets.map((b) => b.leaves + b.refusals));
    let from = byTime ? this.begins : 0;
    for (const bucket of this.buckets) {
      const to = byTime ? Date.parse(bucket.at) : bucket.sequence;
      // Over time a quiet stretch stays empty: a bar stands where its last event was, no wider than needed.
      const left = byTime ? Math.max(x(from), x(to) - 4) : x(from);
      const bar = Math.max(1, x(to) - left - (!byTime && width / this.buckets.length > 4 ? 1 : 0.3));
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
      from = to;
    }
    if (store.live) return;
    const here = x(byTime ? this.moment : store.at ?? store.head);
    drawing.fillStyle = colour("bg");
    drawing.globalAlpha = 0.6;
    drawing.fillRect(here, 0, box.width - here, HEIGHT);
    drawing.globalAlpha = 1;
  }
}
