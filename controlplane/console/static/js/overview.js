// The first page: is all well, where are the ranges, who lags, what just happened.

import { ago, announce, eventBadge, h, link, moment, n, took } from "./dom.js";
import { Ring } from "./ring.js";
import { Sites } from "./sites.js";
import { Cells } from "./space.js";
import { store } from "./store.js";

const SLOWEST_S = 30;
const ALARM_SHOWN_S = 3600;
const FASTEST_S = 0.001;
const place = (seconds) => Math.max(0, Math.min(1, Math.log(Math.max(seconds, FASTEST_S) / FASTEST_S) / Math.log(SLOWEST_S / FASTEST_S))) * 100;

// The first thing to know of the reservations: an address without a holder, backends that are down, else the addresses.
function clbLine(list) {
  const addresses = list.flatMap((clb) => clb.addresses.map((address) => ({ ...address, ours: clb.provider === "gateway" })));
  const lost = addresses.filter((a) => a.ours && !a.holder).length;
  const dead = addresses.filter((a) => a.backends && !a.healthy).length;
  if (!list.length) return "no pair reserved";
  if (lost || dead) return h("b.error-text", {}, [lost && `${n(lost)} not held`, dead && `${n(dead)} without a healthy backend`].filter(Boolean).join(" · "));
  return link("/clb", phrases(...addresses.slice(0, 2).map((a) => a.address)));
}

// Short phrases in a row, each unbroken: a narrow tile breaks between them.
const phrases = (...list) => list.filter(Boolean).map((phrase, i) => [i ? " · " : "", h("span", {}, phrase)]);

export class OverviewPage {
  constructor(go) {
    const open = (name) => go(`/nodes/${encodeURIComponent(name)}`);
    this.ring = new Ring();
    this.cells = new Cells(open);
    this.sites = new Sites(open);
    this.mode = localStorage.getItem("isthmus.colours") === "kind" ? "kind" : "state";
    this.conditions = h("ul.conditions", { "aria-label": "Conditions" });
    this.tiles = h("section.tiles", { "aria-label": "Numbers" });
    this.legend = h("ul.legend", { "aria-label": "Legend" });
    this.space = h("div.space", {}, this.ring.element, this.cells.element);
    this.nowhere = h("p.empty", { hidden: true }, "No container CIDR is defined at this moment");
    this.feed = h("ol.feed", { "aria-label": "Latest events" });
    this.conv = h("div", {});
    this.convPanel = this.panel("Convergence", h("span.muted", {}, "decided → in every kernel"), this.conv);
    this.element = h("div.page", {},
      h("h1.hidden", {}, "Overlay"), this.conditions, this.tiles,
      h("div.split", {},
        h("div.stack", {},
          this.panel("Address space", this.toggle(), this.space, this.legend, this.nowhere),
          this.panel("Sites", h("span.muted", {}, "one mark per node"), this.sites.element)),
        h("div.stack", {}, this.convPanel,
          this.panel("Events", link("/events", "all"), this.feed))));
    this.watcher = new ResizeObserver(() => this.paint());
    this.watcher.observe(this.cells.element);
  }

  close() { this.watcher.disconnect(); cancelAnimationFrame(this.frame); }

  panel(title, extra, ...content) {
    return h("section.panel", {}, h("header", {}, h("h2", {}, title), h("div.spacer", {}), extra), ...content);
  }

  toggle() {
    const button = (mode, text) => h("button", { type: "button", "aria-pressed": String(this.mode === mode), onclick: (event) => {
      this.mode = mode;
      localStorage.setItem("isthmus.colours", mode);
      for (const other of event.target.parentElement.children) other.setAttribute("aria-pressed", String(other === event.target));
      this.update(new Set(["all"]));
    } }, text);
    return h("div.seg", { role: "group", "aria-label": "Colour by" }, button("state", "state"), button("kind", "kind of owner"));
  }

  paint() {
    cancelAnimationFrame(this.frame);
    this.frame = requestAnimationFrame(() => { if (store.ready) { this.ring.draw(this.mode); this.cells.draw(this.mode); this.sites.draw(); } });
  }

  update(parts) {
    if (!store.ready) return;
    const all = parts.has("all") || parts.has("theme");
    if (all || parts.has("overlay") || parts.has("agents")) this.paint();
    if (all || parts.has("overlay") || parts.has("conditions")) this.showConditions();
    if (all || parts.has("overlay")) this.showLegend();
    if (all || parts.has("events")) this.showFeed();
    if (all || parts.has("convergence") || parts.has("position")) this.showConvergence();
    this.showTiles();
  }

  showConditions() {
    const raised = Date.parse(store.overview.position.moment ?? "") - ALARM_SHOWN_S * 1000;
    const alarms = (store.overview.alarms ?? []).filter((alarm) => Date.parse(alarm.at) > raised);
    const list = [...alarms.map((a) => ({ severity: "critical", code: `alarm ${a.name}`, message: `${a.message} (${moment(a.at)})` })), ...store.overview.conditions];
    if (!store.overview.defined) {
      this.conditions.replaceChildren(h("li.info", {}, h("b", {}, "No cluster yet"), h("span", {}, "Define one: isthmus cluster define --cidr 172.16.0.0/16 --pods 64 --services 256")));
      return;
    }
    this.conditions.hidden = !list.length;
    this.conditions.replaceChildren(...list.map((c) => h("li", { class: c.severity }, h("b", {}, { critical: "✕ ", warning: "▲ ", info: "ℹ " }[c.severity], c.code.replaceAll("_", " ")), h("span", {}, c.message, c.help ? [" ", h("code.help", {}, c.help)] : ""))));
  }

  showTiles() {
    const o = store.overview;
    const latest = store.convergence.find((c) => c.applied);
    const share = (count) => `${(100 * count) / Math.max(1, o.pool.capacity)}%`;
    const bar = (...pieces) => h("div.meter", { "aria-hidden": "true" }, pieces.map(([width, name]) => h("i", { css: { width, background: `var(--${name})` } })));
    const differing = o.kernels.differs ?? 0;
    const agreeing = o.kernels.agrees ?? 0;
    const others = o.nodes - differing - agreeing;
    const unheard = (o.agents.unknown ?? 0) + (o.agents.unreported ?? 0) + (o.agents.silent ?? 0) + (o.agents.unreachable ?? 0);
    const silent = (o.agents.silent ?? 0) + (o.agents.unreachable ?? 0);
    const up = o.agents.ready ?? 0;
    const states = { unreachable: "unreachable", silent: "silent", degraded: "degraded", starting: "starting", stopping: "stopping", unreported: "never reported", unknown: "not known" };
    const down = Object.entries(states).filter(([name]) => o.agents[name]).map(([name, text]) => `${n(o.agents[name])} ${text}`);
    const slowest = o.watermark ? `slowest has applied ${n(o.watermark)}` : `${n(unheard)} not heard`;
    const tile = (label, value, sub, extra, tone) => h("div.panel.tile", { class: tone ?? "" }, h("span.label", {}, label), h("span.value", { class: [value].flat().map((part) => part.textContent ?? part).join("").length > 12 ? "long" : "" }, value), extra, h("span.sub", {}, sub));
    const done = latest && latest.last !== null;
    this.tiles.replaceChildren(
      store.recorded
        ? tile("Nodes up", [n(up), h("small", {}, ` of ${n(o.nodes)}`)], down.length ? phrases(...down) : o.nodes ? "all report that they are ready" : "no nodes yet",
          bar([`${(100 * up) / Math.max(1, o.nodes)}%`, "good"]), up === o.nodes ? "" : up < o.nodes / 2 ? "bad" : "warn")
        : "",
      tile("Nodes", n(o.nodes), [h("span.k-cloud", {}, `${n(o.cloud)} cloud`), " · ", h("span.k-external", {}, `${n(o.external)} external`)],
        bar([`${(100 * o.cloud) / Math.max(1, o.nodes)}%`, "cloud"], [`${(100 * o.external) / Math.max(1, o.nodes)}%`, "external"])),
      tile("Ranges in use", [n(o.pool.allocated), h("small", {}, ` of ${n(o.pool.capacity)}`)], phrases(`${n(o.pool.draining)} draining`, `${n(o.pool.quarantined)} quarantined`),
        bar([share(o.pool.allocated), "allocated"], [share(o.pool.draining), "draining"], [share(o.pool.quarantined), "quarantined"])),
      store.recorded
        ? tile("Latest convergence", latest ? (done ? took(latest.last) : [n(latest.applied), h("small", {}, `/${n(latest.expected)}`)]) : "–", latest ? (done ? phrases(`median ${took(latest.median)}`, `${n(latest.applied)} agents`) : `event ${n(latest.last_sequence)} on its way`) : "no event measured yet")
        : tile("Latest convergence", "–", "not recorded"),
      store.recorded
        ? tile("Agents behind", n(o.agents_behind), o.agents_behind ? slowest : unheard ? `${n(unheard)} not heard` : o.nodes ? "every agent is current" : "no agents yet", null, o.agents_behind ? "warn" : "")
        : tile("Agents behind", "–", "not recorded"),
      store.recorded
        ? tile("Kernels agree", [n(agreeing), h("small", {}, ` of ${n(o.nodes)}`)], phrases(differing && h("b.error-text", {}, `${n(differing)} ${differing === 1 ? "differs" : "differ"}`), others ? `${n(others)} not compared` : differing || silent ? "" : o.nodes ? "each digest agrees" : "no agents yet", silent && `${n(silent)} silent since: as last heard`), null, differing ? "bad" : silent ? "warn" : "")
        : tile("Kernels agree", "–", "not recorded"),
      tile("Log", n(o.position.sequence), o.position.at ? `last event ${ago(o.position.at)}` : "empty"),
      tile("CLB", n(o.clb.length), clbLine(o.clb)));
  }

  showLegend() {
    const { pool, defined } = store.overview;
    this.space.hidden = this.legend.hidden = !defined;
    this.nowhere.hidden = defined;
    const item = (name, label, count) => h("li", {}, h("i", { css: { background: `var(--${name})` } }), label, count !== undefined && h("b", {}, n(count)));
    const taken = this.mode === "kind" ? [item("cloud", "of cloud nodes"), item("external", "of external nodes")] : [item("allocated", "allocated", pool.allocated)];
    this.legend.replaceChildren(...taken, item("draining", "draining", pool.draining), item("quarantined", "quarantined", pool.quarantined), item("free", "free", pool.free),
      item("service", `Services ${pool.service_cidr}`), item("cursor", `cursor at ${n(pool.cursor)}`));
  }

  showFeed() {
    const fresh = store.events.filter((event) => event.fresh);
    this.feed.replaceChildren(...store.events.slice(0, 14).map((event) => h("li", { class: event.fresh ? "new" : "" }, eventBadge(event),
      h("span.what", { title: event.summary }, link(`/events/${event.sequence}`, event.summary)), h("span.when.num", {}, n(event.sequence)))));
    if (!store.events.length) this.feed.replaceChildren(h("li.empty", {}, "No events yet"));
    for (const event of fresh) event.fresh = false;
    if (fresh.length && store.live) announce(fresh[0].summary);
  }

  showConvergence() {
    if (!store.recorded) { this.conv.replaceChildren(h("p.empty", {}, "Not recorded at this moment")); return; }
    const list = store.convergence.filter((c) => c.expected).slice(0, 9);
    if (!list.length) { this.conv.replaceChildren(h("p.empty", {}, store.live ? "Measured from the next event on" : "Nothing was measured up to here")); return; }
    const ticks = [[0.001, "1 ms"], [0.01, "10 ms"], [0.1, "0.1 s"], [1, "1 s"], [10, "10 s"]];
    this.conv.replaceChildren(
      h("div.axis", { "aria-hidden": "true" }, ticks.map(([s, text]) => h("span", { css: { left: `${place(s)}%` } }, text))),
      h("ol.conv", {}, list.map((c) => {
        const late = c.last === null;
        const end = c.last ?? c.p99 ?? c.first;
        return h("li", { class: late ? "late" : "", title: `${c.summary}: first ${took(c.first)}, median ${took(c.median)}, p99 ${took(c.p99)}, last ${took(c.last)}` },
          link(`/events/${c.last_sequence}`, `#${n(c.last_sequence)}`),
          h("span.bar", {}, c.applied ? [h("i", { css: { left: `${place(c.first)}%`, width: `${Math.max(0, place(end) - place(c.first))}%` } }), h("i.mid", { css: { left: `${place(c.median)}%` } })] : null),
          h("span.out", {}, late ? `${n(c.applied)}/${n(c.expected)}` : `${took(c.last)} · ${n(c.applied)}`));
      })));
  }
}
