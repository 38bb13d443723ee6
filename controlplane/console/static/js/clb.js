// The private CLB: each reservation with its addresses, who holds them since when, the backends behind
// them and their health, and how that came about; now or as it was.

import { ago, h, link, moment, mono, n, stateLabel, took } from "./dom.js";
import { store } from "./store.js";

const page = (name) => `/clb/${encodeURIComponent(name)}`;
const node = (name) => link(`/nodes/${encodeURIComponent(name)}`, name);
const event = (sequence) => link(`/events/${sequence}`, `#${n(sequence)}`);
const CAUSES = { left: "left, handed over", unmarked: "unmarked, handed over", silent: "fell silent", fenced: "was fenced", released: "reservation released" };
const PROVIDERS = { gateway: "Isthmus gateways hold the addresses", "reserve-only": "The cloud's own load balancer takes the addresses" };

// How an address is: held or not, and whether anything answers behind it.
function health(address, ours) {
  if (!ours) return stateLabel("reserved", "reserved");
  if (!address.holder) return stateLabel("unreachable", "not held");
  if (!address.backends) return stateLabel("behind", "held, no backend");
  if (!address.healthy) return stateLabel("unreachable", "no healthy backend");
  return stateLabel(address.healthy < address.backends ? "degraded" : "ready", `${address.healthy} of ${address.backends} healthy`);
}

function card(title, address, ours, since, extra) {
  const lost = ours && !address.holder;
  return h("section.panel.address", { class: lost || (address.backends && !address.healthy) ? "bad" : "" },
    h("header", {}, h("h2", {}, title), h("div.spacer", {}), health(address, ours)),
    h("p.big.mono", {}, address.address),
    ours
      ? h("p", {}, address.holder ? [node(address.holder), " holds it", since && since !== true ? ` since ${moment(since, true)} (${ago(since)})` : "", ", epoch ", event(address.epoch)] : h("b.error-text", {}, "No gateway holds this address"))
      : h("p.muted", {}, "Held outside of Isthmus"),
    extra);
}

// Who from outside may reach pods, and by which address they come.
function entries(list) {
  const rows = list.map((entry) => h("tr", {}, h("td", {}, entry.name), h("td", {}, mono(entry.sources.join(", "))), h("td", {}, mono(entry.address)),
    h("td", {}, entry.node ? node(entry.node) : h("b.error-text", {}, "no gateway")), h("td", {}, event(entry.since))));
  return h("section.panel", { "aria-label": "Entries" }, h("header", {}, h("h2", {}, "Entries")), rows.length
    ? h("div.scroll", { tabindex: "0", role: "region", "aria-label": "Entries, scrollable" }, h("table", { "aria-label": "Entries" },
      h("thead", {}, h("tr", {}, ["Name", "Sources", "Come by", "Held by", "Since"].map((head) => h("th", { scope: "col" }, head)))), h("tbody", {}, rows)))
    : h("p.empty", {}, store.live ? "Nobody outside reaches pods. isthmus entry add NAME --from CIDR" : "Nobody outside reached pods then."));
}

export class ClbListPage {
  constructor() {
    this.content = h("div.stack", {});
    this.element = h("div.page", {}, h("div.head", {}, h("h1", {}, "CLB")), this.content);
  }

  update() {
    if (!store.ready) return;
    const list = store.overview.clb;
    this.content.replaceChildren(...list.map((clb) => h("section", { "aria-label": clb.name },
      h("div.head", {}, h("h2.large", {}, link(page(clb.name), clb.name)), h("span.chip", {}, clb.provider), h("span.muted", {}, "in ", mono(clb.subnet))),
      h("div.two", {}, clb.addresses.map((address) => card(address.purpose, address, clb.provider === "gateway", true))))));
    if (!list.length) this.content.replaceChildren(h("section.panel", {}, h("p.empty", {}, store.live ? "No pair is reserved. isthmus clb reserve NAME --subnet CIDR" : "No pair was reserved then.")));
    if (list.length || store.overview.entries.length) this.content.append(entries(store.overview.entries));
  }
}

export class ClbPage {
  constructor(go, name) {
    this.name = name;
    this.top = h("div.head", {}, h("h1", {}, name));
    this.content = h("div.stack", {});
    this.element = h("div.page", {}, h("p", {}, link("/clb", "← CLB")), this.top, this.content);
    this.timer = setInterval(() => { if (store.live && !document.hidden) this.load(); }, 4000);
    this.load();
  }

  close() { clearInterval(this.timer); }

  update(parts) {
    if (parts.has("all")) this.load();
    else if (parts.has("events") && store.events.slice(0, 40).some((one) => one.type.startsWith("clb.") || one.type.startsWith("node."))) this.load();
  }

  async load() {
    let found;
    try { found = await store.get(`clb/${encodeURIComponent(this.name)}${store.suffix()}`); } catch (error) {
      this.top.replaceChildren(h("h1", {}, this.name));
      this.content.replaceChildren(h("section.panel", {}, h("p.empty", {}, error.message)));
      return;
    }
    this.show(found);
  }

  show(found) {
    const { reservation } = found;
    const ours = reservation.provider === "gateway";
    const panel = (title, extra, ...content) => h("section.panel", {}, h("header", {}, h("h2", {}, title), h("div.spacer", {}), extra), ...content);
    const fact = (label, value) => h("div", {}, h("dt", {}, label), h("dd", {}, value));
    this.top.replaceChildren(h("h1", {}, this.name), h("span.chip", {}, reservation.provider), h("span.muted", {}, PROVIDERS[reservation.provider] ?? "Realised elsewhere"));
    const parts = [
      h("div.two", {}, reservation.addresses.map((address) => card(address.purpose, address, ours, found.held_since[address.address]))),
      panel("Reservation", null, h("dl.facts", {}, fact("Subnet", mono(reservation.subnet)), fact("Its router", reservation.gateway ? mono(reservation.gateway) : "–"), fact("Reserved", found.reserved ? [event(found.reserved), ` ${moment(found.reserved_at, true)}`] : "–"),
        fact("Addresses kept clear of", found.excluded.length ? found.excluded.map((a, i) => [i ? ", " : "", mono(a)]) : "none"))),
    ];
    if (ours) parts.push(this.backends(found, panel), this.tenures(found, panel), this.gateways(found, panel), this.changes(found, panel));
    this.content.replaceChildren(...parts);
  }

  table(label, heads, rows, empty) {
    if (!rows.length) return h("p.empty", {}, empty);
    return h("div.scroll", { tabindex: "0", role: "region", "aria-label": `${label}, scrollable` }, h("table", { "aria-label": label }, h("thead", {}, h("tr", {}, heads.map((head) => h("th", { scope: "col" }, head)))), h("tbody", {}, rows)));
  }

  backends({ backends }, panel) {
    const down = backends.filter((one) => !one.healthy).length;
    return panel("Backends", h("span", { class: down ? "error-text" : "muted" }, down ? `${n(down)} of ${n(backends.length)} down` : `${n(backends.length)}`), this.table("Backends", ["Serves", "Port", "Backend", "Health", "Since", "Last check", "Checked by", "Affinity"], backends.map((one) => h("tr", {},
      h("td", {}, one.purpose), h("td", {}, `${one.protocol} ${one.port}`), h("td", {}, mono(`${one.address}:${one.backend_port}`)), h("td", {}, stateLabel(one.healthy ? "ready" : "unreachable", one.healthy ? "healthy" : "down")),
      h("td", {}, one.since ? [event(one.since), ` ${ago(one.since_at)}`] : h("span.muted", {}, "no change recorded")), h("td.wide", {}, one.reason || "–"), h("td.muted", {}, one.check), h("td", {}, one.affinity === "none" ? "–" : one.affinity))),
    "No backend yet. isthmus clb backend add NAME …"));
  }

  tenures({ tenures }, panel) {
    const failovers = tenures.filter((one) => one.until && one.cause !== "released").length;
    return panel("Holders", h("span.muted", {}, failovers ? `${n(failovers)} handed over or failed over` : "no failover"), this.table("Holders", ["Address", "Held by", "From", "Until", "For", "Why it ended", "Without a holder before"], tenures.map((one) => h("tr", {},
      h("td", {}, mono(one.address), h("small.muted", {}, ` ${one.purpose}`)), h("td", {}, node(one.node)), h("td", {}, event(one.epoch), one.at ? ` ${moment(one.at)}` : ""), h("td", {}, one.until ? [event(one.until), ` ${moment(one.until_at)}`] : stateLabel("ready", "holds it")),
      h("td.num", {}, one.at ? took((Date.parse(one.until_at ?? new Date()) - Date.parse(one.at)) / 1000) : "–"), h("td", {}, one.cause ? h("span", { class: one.cause === "silent" || one.cause === "fenced" ? "error-text" : "" }, one.reason || (CAUSES[one.cause] ?? one.cause)) : "–"), h("td.num", {}, one.gap_s ? took(one.gap_s) : "–"))),
    "No gateway has held an address yet"));
  }

  gateways({ gateways, position }, panel) {
    return panel("Gateways", null, this.table("Gateways", ["Node", "Agent", "Marked", "Holds"], gateways.map((one) => h("tr", {},
      h("td", {}, node(one.node)), h("td", {}, position.recorded ? [stateLabel(one.state), one.able ? "" : h("small.error-text", {}, " not started with --gateway")] : "not recorded"), h("td", {}, event(one.since)), h("td", {}, one.holds.length ? one.holds.map((a, i) => [i ? ", " : "", mono(a)]) : h("span.muted", {}, "stands by")))),
    "No node is marked. isthmus clb gateway add NODE"));
  }

  changes({ health: list }, panel) {
    return panel("Health history", null, list.length ? h("ol.feed", { "aria-label": "Health history" }, list.map((one) => h("li", {}, h(`span.badge.${one.healthy ? "recovered" : "unreachable"}`, { "aria-hidden": "true" }, one.healthy ? "✓" : "!"),
      h("span.what", { title: one.reason }, link(`/events/${one.sequence}`, `${one.purpose}: ${one.backend} is ${one.healthy ? "healthy" : "down"}`), h("span.muted", {}, `${one.reason ? `: ${one.reason}` : ""} (seen by ${one.node})`)), h("span.when", {}, moment(one.at))))) : h("p.empty", {}, "No change of health recorded"));
  }
}
