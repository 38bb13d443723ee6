// All nodes in a table that draws only what is in view, and one page for each node.

import { ago, deed, eventBadge, h, kernelLabel, kindLabel, link, moment, mono, n, stateLabel, stateWord, took } from "./dom.js";
import { findings, pathsTable } from "./mesh.js";
import { store } from "./store.js";

const ROW = 36;
const COLUMNS = [
  ["name", "Node"], ["state", "State"], ["kind", "Kind"], ["site", "Site"], ["announced", "Reached at"],
  ["index", "Range"], ["pods", "Pods"], ["mtu", "MTU"], ["applied", "Applied"], ["behind", "Behind"], ["age_s", "Last report"], ["kernel", "Kernel"],
  ["version", "Agent"],
];

export const behind = (node) => Math.max(0, (store.at ?? store.head) - node.applied);
// A row says how old it was when it came; from then on it ages here, whatever the stream says.
const ageNow = (node) => node.age_s + (Date.now() - (node.came_ms ??= Date.now())) / 1000;
const seen = (node) => ((node.age_s ?? -1) < 0 ? "–" : !store.live ? `${node.state === "silent" ? "" : "within "}${took(node.age_s)}${node.state === "silent" ? " before" : ""}` : ageNow(node) < 1 ? "now" : `${took(ageNow(node))} ago`);
const RIGHT = new Set(["pods", "mtu", "applied", "behind"]);
// What a packet of its pods may have: by the device, and on the narrowest way where that is less.
const mtu = (node) => (!node.mtu ? "–" : node.path_mtu && node.path_mtu < node.mtu ? `${node.mtu}, ${node.path_mtu} to some` : `${node.mtu}`);
// Of a range's addresses three are not for pods: the network's, the gateway's and the last one.
const pods = (node) => { const most = store.overview?.pool.pods_per_node ?? 0; return (node.pods ?? -1) < 0 ? "–" : `${n(node.pods)} of ${n(most)}`; };
const PATHS = { confirmed: "pass", "not confirmed": "not confirmed", failing: "DO NOT PASS", "no peers": "no peers to ask yet" };
const packets = (row) => (row.path ? `${PATHS[row.path] ?? row.path}${(row.passed_age_s ?? -1) >= 0 ? `, the last one ${took(row.passed_age_s)} before` : ""}` : "not known");

export function shownState(node) {
  return node.state === "ready" && store.late(node) ? "behind" : node.state;
}

// In words, what is known of an address.
function owner({ kind, cidr, node, reservation, purpose, pod }) {
  if (kind === "node") return `the address of node ${node}`;
  if (kind === "clb") return `${purpose} of CLB ${reservation}${node ? `, held by ${node}` : ""}`;
  if (kind === "service") return `of Services (${cidr})`;
  if (kind === "free_range") return `of the free range ${cidr}`;
  if (kind !== "range") return "not in this cluster";
  const which = !pod ? "" : pod.state === "known"
    ? `pod ${pod.name ? `${pod.namespace}/${pod.name}` : pod.container} since ${moment(pod.since)}`
    : pod.state === "none" ? "no pod that its node told of" : `pod not known: ${pod.note}`;
  return `range ${cidr} of node ${node}${which ? `; ${which}` : ""}`;
}

export class NodesPage {
  constructor(go) {
    this.go = go;
    this.sort = { key: "name", down: false };
    this.text = h("input", { type: "search", placeholder: "Name, address or range", "aria-label": "Filter by name, address or range", oninput: () => { this.refill(); this.ask(); } });
    this.owner = h("p.muted", { role: "status", "aria-label": "Whose the address is" });
    this.owned = "";
    this.kind = this.select("Kind", ["cloud", "external"]);
    this.state = this.select("State", ["ready", "behind", "degraded", "silent", "unreachable", "unreported", "unknown"]);
    this.count = h("span.muted", { role: "status" });
    this.heads = COLUMNS.map(([key, label]) => h("th", { scope: "col", "aria-sort": key === "name" ? "ascending" : "none", class: `c-${key}${RIGHT.has(key) ? " right" : ""}` },
      h("button", { type: "button", onclick: () => this.sortBy(key) }, label)));
    this.body = h("tbody", {});
    this.table = h("table", { "aria-label": "Nodes" }, h("thead", {}, h("tr", {}, this.heads)), this.body);
    this.scroller = h("div.grid.virtual", { tabindex: "0", role: "region", "aria-label": "Nodes, scrollable", onscroll: () => this.window() }, this.table);
    this.element = h("div.page", {}, h("div.head", {}, h("h1", {}, "Nodes"), this.count, h("div.spacer", {}), h("div.tools", {}, this.text, this.kind, this.state)), this.owner, this.scroller);
    this.timer = setInterval(() => { if (store.live) this.refresh(); }, 5000);
  }

  close() { clearInterval(this.timer); }

  // Ages grow by themselves; what else the stream does not carry comes with them.
  async refresh() {
    if (!store.ready || document.hidden) return;
    try {
      const { nodes } = await store.get("nodes?limit=20000");
      if (!store.live) return;
      for (const node of nodes) store.nodes.set(node.name, node);
      this.refill();
    } catch { /* the link's state says it */ }
  }

  // A whole address in the filter: whose it is, and which pod has it, by what its node told.
  async ask() {
    const text = this.text.value.trim();
    let said = "", owned = "";
    if (/^\d{1,3}(\.\d{1,3}){3}$/.test(text)) {
      try {
        const found = await store.get(`addresses/${text}${store.suffix()}`);
        if (this.text.value.trim() !== text) return;
        owned = found.node;
        said = `${text}: ${owner(found)}`;
      } catch (error) { said = error.message === "locked" ? "" : error.message; }
    }
    if (this.text.value.trim() !== text) return;
    this.owner.textContent = said;
    this.owned = owned;
    this.refill();
  }

  select(label, values) {
    return h("select", { "aria-label": label, onchange: () => this.refill() }, h("option", { value: "" }, `${label}: any`), values.map((value) => h("option", { value }, stateWord(value))));
  }

  sortBy(key) {
    this.sort = { key, down: this.sort.key === key ? !this.sort.down : false };
    COLUMNS.forEach(([name], i) => this.heads[i].setAttribute("aria-sort", name === key ? (this.sort.down ? "descending" : "ascending") : "none"));
    this.refill();
  }

  update(parts) {
    if (store.ready && (parts.has("all") || parts.has("overlay") || parts.has("agents"))) this.refill();
  }

  refill() {
    const text = this.text.value.trim().toLowerCase();
    const { key, down } = this.sort;
    const turn = down ? -1 : 1;
    const natural = new Intl.Collator("en", { numeric: true });
    const value = (node) => (key === "state" ? shownState(node) : key === "behind" ? (node.applied ? behind(node) : -1) : key === "mtu" ? node.path_mtu || node.mtu || 0 : node[key] ?? (key === "pods" ? -1 : undefined));
    this.rows = [...store.nodes.values()].filter((node) =>
      (!text || node.name.includes(text) || node.announced.includes(text) || (node.range ?? "").includes(text) || (this.owned && node.name === this.owned)) &&
      (!this.kind.value || node.kind === this.kind.value) && (!this.state.value || shownState(node) === this.state.value));
    this.rows.sort((a, b) => {
      const [x, y] = [value(a), value(b)];
      return turn * (typeof x === "number" ? x - (y ?? 0) : natural.compare(String(x ?? ""), String(y ?? ""))) || natural.compare(a.name, b.name);
    });
    const all = this.rows.length === store.nodes.size;
    const up = [...store.nodes.values()].filter((node) => node.state === "ready").length;
    this.count.textContent = `${all ? "" : `${n(this.rows.length)} shown; `}${n(up)} of ${n(store.nodes.size)} up`;
    this.table.setAttribute("aria-rowcount", this.rows.length + 1);
    this.window();
  }

  window() {
    if (!this.rows) return;
    const first = Math.max(0, Math.floor(this.scroller.scrollTop / ROW) - 8);
    const last = Math.min(this.rows.length, first + Math.ceil(this.scroller.clientHeight / ROW) + 16);
    const pad = (rows) => h("tr", { "aria-hidden": "true", css: { height: `${rows * ROW}px` } }, h("td.pad", { colSpan: COLUMNS.length }));
    const shown = this.rows.slice(first, last).map((node, i) => this.row(node, first + i));
    if (!this.rows.length) shown.push(h("tr", {}, h("td.empty", { colSpan: COLUMNS.length }, store.nodes.size ? "No node matches" : "No nodes at this sequence")));
    this.body.replaceChildren(...(first ? [pad(first)] : []), ...shown, ...(last < this.rows.length ? [pad(this.rows.length - last)] : []));
  }

  row(node, place) {
    const state = shownState(node);
    // What an agent said that is silent now is what was: it is shown as such.
    return h("tr", { "aria-rowindex": place + 2, class: node.stale ? "stale" : "" },
      h("td", {}, link(`/nodes/${encodeURIComponent(node.name)}`, node.name)), h("td", {}, stateLabel(state)), h("td.c-kind", {}, kindLabel(node.kind)), h("td.c-site", {}, node.site || "–"),
      h("td.c-announced", {}, mono(node.announced), node.behind_nat ? h("span.muted", { title: node.seen_as ? `behind NAT; first seen as ${node.seen_as}` : "behind NAT" }, " NAT") : ""), h("td", {}, mono(node.range || "–")), h("td.c-pods.right.num", {}, pods(node)), h("td.c-mtu.right.num", {}, mtu(node)), h("td.c-applied.right.num", {}, node.applied ? n(node.applied) : "–"),
      h("td.c-behind.right.num", {}, node.applied ? n(behind(node)) : "–"), h("td.c-age_s", {}, seen(node)), h("td", {}, store.recorded ? kernelLabel(node) : "–"), h("td.c-version", {}, node.version || "–"));
  }
}

// Which way packets take to the peers that the agent names: not those that it reaches through the plain tunnel.
function waysTable(ways) {
  const sorted = [...ways].sort((x, y) => x.way.localeCompare(y.way) || x.peer.localeCompare(y.peer));
  return h("div.scroll", { tabindex: "0", role: "region", "aria-label": "Ways to peers, scrollable" }, h("table", { "aria-label": "Ways to peers" },
    h("thead", {}, h("tr", {}, ["Peer", "Way", "By", "Since"].map((label) => h("th", { scope: "col" }, label)))),
    h("tbody", {}, sorted.map((way) => h("tr", {}, h("td", {}, link(`/nodes/${encodeURIComponent(way.peer)}`, way.peer)), h("td.wrap", {}, `${way.way === "nat" ? "through NAT" : way.way}, ${!way.encrypted ? "plain" : way.way === "relayed" ? "encrypted to and from it" : "encrypted"}`),
      h("td.wrap", {}, way.via || "–"), h("td", { title: [way.since && moment(way.since, true), way.why].filter(Boolean).join(": ") }, way.since ? ago(way.since) : "–"))))));
}

export class NodePage {
  constructor(go, name) {
    this.name = name;
    this.top = h("div.head", {}, h("h1", {}, name));
    this.content = h("div.two", {});
    this.element = h("div.page", {}, h("p", {}, link("/nodes", "← Nodes")), this.top, this.content);
    this.timer = setInterval(() => { if (store.live && !document.hidden) this.load(); }, 4000);
    this.load();
  }

  close() { clearInterval(this.timer); }

  update(parts) {
    if (parts.has("all") || parts.has("events")) this.load();
  }

  async load() {
    const path = encodeURIComponent(this.name);
    const [node, traces, mesh] = await Promise.all([
      store.get(`nodes/${path}${store.suffix()}`).catch((error) => ({ error })),
      store.get(`traces?limit=12&node=${path}`).catch(() => []),
      store.get(`mesh?node=${path}${store.suffix("&")}`).catch(() => null),
    ]);
    const at = store.live ? null : node.position?.sequence ?? store.at;
    const history = await store.get(`events?limit=40&entity=${path}${at === null ? "" : `&before=${at + 1}`}`).catch(() => ({ events: [] }));
    this.show(node, history.events, traces, mesh);
  }

  show(node, events, traces, mesh) {
    const panel = (title, ...content) => h("section.panel", {}, h("header", {}, h("h2", {}, title)), ...content);
    const fact = (label, value) => h("div", {}, h("dt", {}, label), h("dd", {}, value || "–"));
    const wide = (label, value) => h("div.wide", {}, h("dt", {}, label), h("dd", {}, value));
    const panels = [];
    if (node.error) {
      this.top.replaceChildren(h("h1", {}, this.name));
      panels.push(panel("Not here", h("p.muted", {}, node.error.message)));
    } else {
      const row = node.member;
      this.top.replaceChildren(h("h1", {}, this.name), row ? stateLabel(shownState(row)) : stateLabel("unknown", "not a member"), row && h("span.chip", {}, kindLabel(row.kind)), row?.site && h("span.chip", {}, row.site));
      if (row) panels.push(panel("Network", h("dl.facts", {},
        fact("Range", mono(row.range)), fact("Gateway of its pods", mono(node.gateway)), fact("Pods", (row.pods ?? -1) < 0 ? `at most ${n(node.usable_pods)}` : pods(row)), fact("MTU of its pods", mtu(row)), fact("Reached at", mono(row.announced)),
        fact("Own address", mono(node.underlay)), row.behind_nat ? fact("Behind NAT", ["since event ", link(`/events/${row.behind_nat}`, n(row.behind_nat)), row.seen_as ? ", then seen as " : "", row.seen_as ? mono(row.seen_as) : ""]) : "", fact("VTEP MAC", mono(node.vtep_mac)), fact("Epoch", link(`/events/${row.epoch}`, n(row.epoch))), fact("Joined", link(`/events/${node.joined}`, n(node.joined))), fact("Uid", mono(node.uid)))));
      if (row && !node.position.recorded) panels.push(panel("Agent", h("p.muted", {}, "Not recorded at this moment.")));
      else if (row) panels.push(panel("Agent", h("dl.facts", {},
        fact("State", row.state ?? "unknown"), fact("Applied", row.applied ? n(row.applied) : "–"), fact("Behind", row.applied ? `${n(row.behind ?? 0)} events` : "–"), fact("Last report", seen(row)),
        fact("Packets of its pods", packets(row)), fact("Peers", row.ways ? `${n(node.peers)}: ${row.ways}` : n(node.peers)), fact("Fast path", row.fast_path || "not known"), fact("Version", node.agent_version), wide("Conditions", (row.conditions ?? []).join("; ") || "none"),
        node.gateway_able || node.gateway_marked ? fact("Gateway", node.holds.length ? ["holds ", node.holds.map((a, i) => [i ? ", " : "", mono(a)])] : node.gateway_marked ? "marked, holds nothing" : "able, not marked") : "")));
      if (row && node.peer_ways?.length) panels.push(panel("Ways to peers", waysTable(node.peer_ways)));
      if (row && node.position.recorded) panels.push(panel("Kernel", h("dl.facts", {},
        fact("Against the log", kernelLabel(row)), fact("Compared at", row.kernel_at ? link(`/events/${row.kernel_at}`, n(row.kernel_at)) : "–"), fact("Digest", node.kernel_digest ? mono(node.kernel_digest.slice(0, 16), "…") : "not reported")),
        node.kernel_rows.length ? h("ul.rows", { "aria-label": "Rows that differ" }, node.kernel_rows.map((text) => h("li.mono", {}, text))) : row.kernel === "differs" ? h("p.muted", {}, "The agent names no row: isthmus agent status on that node shows its own view.") : ""));
      const found = mesh?.mesh.findings.filter((one) => [one.a, one.b].includes(this.name) || [one.a, one.b].includes(row?.site || null)) ?? [];
      if (row && mesh) panels.push(panel("Paths", found.length ? findings(found) : "", mesh.measured ? (mesh.mesh.paths.length ? pathsTable(this.name, mesh.mesh.paths) : h("p.muted", {}, "Not measured.")) : h("p.muted", {}, "Measurements are of the present only; of this moment what was recorded is shown.")));
      const others = node.ranges.filter((range) => range.phase !== "allocated");
      if (others.length) panels.push(panel("Ranges on their way back", h("ul.feed", {}, others.map((range) => h("li", {}, mono(range.cidr), range.phase, h("span.muted", {}, range.until ? `until ${moment(range.until)}` : `since ${n(range.draining_since)}`))))));
      if (node.refusals.length) panels.push(panel("Refused", h("ul.conditions", {}, node.refusals.map((r) => h("li.warning", {}, h("b", {}, r.code), r.message)))));
    }
    panels.push(panel("History", events.length ? h("ol.feed", {}, events.map((event) => h("li", {}, eventBadge(event), h("span.what", { title: event.summary }, link(`/events/${event.sequence}`, event.summary)), h("span.when", {}, ago(event.time))))) : h("p.empty", {}, "No events")));
    panels.push(panel("Traces", traces.length ? h("ol.feed", {}, traces.map((trace) => h("li", {}, h("span", { class: trace.errors ? "error-text" : "muted" }, trace.errors ? "✕" : "✓"), h("span.what", {}, link(`/traces/${trace.trace_id}`, deed(trace.name))), h("span.when", {}, `${moment(trace.start_ns / 1e6)} · ${took(trace.duration_ms / 1000)}`)))) : h("p.empty", {}, "No trace kept")));
    this.content.replaceChildren(...panels);
  }
}
