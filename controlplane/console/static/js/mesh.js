// Whether pods reach each other: findings, the matrix by site and by node, and the ways between the sites.

import { ago, h, link, moment, mono, n, plural, stateLabel, took } from "./dom.js";
import { store } from "./store.js";

const EVERY_MS = 4000;
const NODES_SHOWN = 32; // a matrix of so many nodes is still read; more are asked for site by site
const SCOPES = { cluster: "Everything", node: "One node", site: "One site", pair: "One pair of nodes", sites: "Two sites", view: "One agent's view" };
const ms = (us) => took(us / 1e6);
const event = (sequence) => link(`/events/${sequence}`, `event ${n(sequence)}`);
const page = (name) => link(`/nodes/${encodeURIComponent(name)}`, name);
const site = (name) => name || "no site";

// How bad, by loss first, then against the path's own usual round trip, then against the others here.
function heat(path, usual) {
  if (!path || (path.by !== undefined ? ["not measured", "agent away"].includes(path.state ?? "not measured") : !path.measured)) return "none";
  if (path.by !== undefined ? ["silent", "never answered"].includes(path.state) : path.lost && path.lost === path.measured) return "lost";
  if (path.lost || path.loss > 0.01 || path.large_lost || path.large === "lost") return "lossy";
  const [rtt, own] = [path.rtt_us ?? 0, path.usual_us ?? 0];
  return own && rtt > 2 * own && rtt - own > 1000 ? "slow" : rtt > 4 * usual ? "slower" : "fine";
}
const WORDS = { none: "not measured", lost: "lost", lossy: "losing packets", slow: "slower than usual", slower: "slower than most here", fine: "passes" };
const median = (values) => { const sorted = values.filter((v) => v > 0).sort((a, b) => a - b); return sorted[Math.floor(sorted.length / 2)] ?? 0; };

function cell(path, kind, what, open) {
  const text = kind === "none" ? "–" : !path.rtt_us ? (kind === "lost" ? "✕" : "!") : `${kind === "lost" ? "✕ " : ""}${ms(path.rtt_us)}`;
  const large = path?.large_lost || path?.large === "lost" ? ", large packets lost" : "";
  const loss = path?.loss ? `, ${(path.loss * 100).toFixed(path.loss < 0.1 ? 1 : 0)} % of packets lost` : "";
  const usually = path?.usual_us ? `, usually ${ms(path.usual_us)}` : "";
  const label = `${what}: ${WORDS[kind]}${path?.rtt_us ? `, ${ms(path.rtt_us)} there and back${usually}` : ""}${loss}${large}`;
  const notes = [loss && kind !== "lost" ? `${(path.loss * 100).toFixed(0)} %` : "", kind === "slow" ? usually.slice(2) : ""].filter(Boolean).map((note) => h("small", {}, note));
  return h(`td.heat.${kind}`, { title: label }, open ? h("button", { type: "button", "aria-label": label, onclick: open }, text, notes) : h("span", { "aria-label": label, role: "img" }, text, notes));
}

// Rows measure, columns are measured.
function matrix(label, names, paths, show, open) {
  const found = new Map(paths.map((path) => [`${path.a ?? path.by}\n${path.b ?? path.of}`, path]));
  const near = median(paths.filter((p) => (p.a ?? p.by) === (p.b ?? p.of)).map((p) => p.rtt_us));
  const usual = (path) => (path?.a !== undefined && path.a === path.b ? near : median(paths.filter((p) => p.a === undefined || p.a !== p.b).map((p) => p.rtt_us))) || 1;
  return h("div.scroll.matrix", { tabindex: "0", role: "region", "aria-label": `${label}, scrollable` }, h("table", { "aria-label": label },
    h("thead", {}, h("tr", {}, h("th", { scope: "col" }, "From \\ to"), names.map((name) => h("th", { scope: "col" }, show(name))))),
    h("tbody", {}, names.map((a) => h("tr", {}, h("th", { scope: "row" }, show(a)), names.map((b) => {
      const path = found.get(`${a}\n${b}`);
      if (a === b && !path) return h("td.heat.self", {}, "·");
      return cell(path, heat(path, usual(path)), `${a || "no site"} to ${b || "no site"}`, open && (() => open(a, b)));
    }))))));
}

export function findings(list) {
  return h("ul.conditions", { "aria-label": "Findings" }, list.map((one) => h("li", { class: one.scope === "view" ? "info" : one.fault === "large" ? "warning" : "critical" },
    h("b", {}, SCOPES[one.scope] ?? one.scope),
    h("span", {}, one.sentence, one.since ? h("span.muted", {}, ` since ${moment(one.since)} (${ago(one.since)})`) : "", one.recorded ? [" · ", event(one.recorded)] : h("span.muted", {}, " · not recorded yet"),
      (one.evidence ?? []).map((line) => h("div.muted", {}, line)),
      (one.before ?? []).length ? h("div.muted", {}, "Just before: ", one.before.join("; ")) : "",
      h("div", {}, h("code.help", {}, ["site", "sites"].includes(one.scope) ? `isthmus mesh --site ${one.a || "''"}${one.b ? ` --other ${one.b}` : ""}` : one.scope === "cluster" ? "isthmus mesh" : `isthmus mesh ${one.a} ${one.b ?? ""}`.trim()))))));
}

// What was recorded of a past moment, as paths: between the nodes, and of these between the sites.
function recordedPaths(list) {
  const nodes = [...store.nodes.values()];
  const about = (one, a, b) => ({ cluster: true, site: a.site !== b.site && [a.site, b.site].includes(one.a), sites: a.site !== b.site && [a.site, b.site].includes(one.a) && [a.site, b.site].includes(one.b), node: [a.name, b.name].includes(one.a) && one.fault !== "part", pair: [a.name, b.name].includes(one.a) && [a.name, b.name].includes(one.b) })[one.scope];
  const paths = [];
  for (const a of nodes) for (const b of nodes) {
    const found = a === b ? [] : list.filter((one) => about(one, a, b));
    const large = found.length && found.every((one) => one.fault === "large");
    if (a !== b) paths.push({ by: a.name, of: b.name, sites: [a.site, b.site], state: found.length ? (large ? "ok" : "silent") : "not measured", large: large ? "lost" : "" });
  }
  const sites = new Map();
  for (const path of paths) {
    const [a, b] = path.sites;
    const site = sites.get(`${a}\n${b}`) ?? { a, b, measured: 0, lost: 0, large_lost: 0, pairs: 0 };
    site.pairs += 1;
    site.lost += path.state === "silent";
    site.large_lost += path.large === "lost";
    site.measured = site.lost || site.large_lost ? site.pairs : 0;
    sites.set(`${a}\n${b}`, site);
  }
  return { paths, sites: [...sites.values()] };
}

// The sites and what connects them, as a drawing: one line for each pair, both directions in it.
function topology(sites) {
  const groups = new Map();
  for (const node of store.nodes.values()) {
    const group = groups.get(node.site) ?? { nodes: 0, cloud: 0, up: 0, translated: 0, hidden: 0, fast: 0, told: 0 };
    group.nodes += 1;
    group.translated += Boolean(node.translated);
    group.hidden += Boolean(node.behind_nat);
    group.fast += node.fast_path === "on";
    group.told += Boolean(node.fast_path);
    group.cloud += node.kind === "cloud";
    group.up += ["ready", "degraded"].includes(node.state);
    groups.set(node.site, group);
  }
  const holders = new Map();
  for (const pair of store.overview.clb) for (const address of pair.addresses) {
    const at = address.holder && store.nodes.get(address.holder)?.site;
    if (at !== undefined && at !== "") holders.set(at, [...(holders.get(at) ?? []), `${address.holder} holds ${address.address}`]);
    else if (address.holder && store.nodes.has(address.holder)) holders.set("", [...(holders.get("") ?? []), `${address.holder} holds ${address.address}`]);
  }
  const names = [...groups.keys()].sort();
  const found = new Map(sites.map((path) => [`${path.a}\n${path.b}`, path]));
  const usual = median(sites.filter((p) => p.a !== p.b).map((p) => p.rtt_us)) || 1;
  const order = { none: 0, fine: 1, slower: 2, slow: 3, lossy: 4, lost: 5 };
  const ways = [];
  names.forEach((a, i) => names.slice(i + 1).forEach((b) => {
    const there = found.get(`${a}\n${b}`);
    const back = found.get(`${b}\n${a}`);
    const [one, two] = [heat(there, usual), heat(back, usual)];
    ways.push({ a, b, there, back, kind: order[one] >= order[two] ? one : two });
  }));
  const radius = names.length > 1 ? 120 : 0;
  const spot = (i) => [300 + Math.cos(-Math.PI / 2 + (2 * Math.PI * i) / names.length) * radius * 1.7, 165 + Math.sin(-Math.PI / 2 + (2 * Math.PI * i) / names.length) * radius];
  const svg = (tag, props, ...children) => {
    const element = document.createElementNS("http://www.w3.org/2000/svg", tag);
    for (const [key, value] of Object.entries(props)) element.setAttribute(key, value);
    element.append(...children);
    return element;
  };
  const drawn = names.length > 12 ? "" : svg("svg", { viewBox: "0 0 600 330", class: "topology", "aria-hidden": "true" },
    ...ways.map(({ a, b, kind }) => { const [x1, y1] = spot(names.indexOf(a)); const [x2, y2] = spot(names.indexOf(b)); return svg("line", { x1, y1, x2, y2, class: `way ${kind}` }); }),
    ...names.flatMap((name, i) => {
      const [x, y] = spot(i);
      const group = groups.get(name);
      return [svg("circle", { cx: x, cy: y, r: 42, class: `place ${group.cloud ? "cloud" : "external"}` }), svg("text", { x, y: y - 3, class: "name" }, site(name).length > 11 ? `${site(name).slice(0, 10)}…` : site(name)), svg("text", { x, y: y + 13, class: "count" }, `${n(group.up)}/${n(group.nodes)} up`)];
    }));
  const all = (name) => groups.get(name).hidden === groups.get(name).nodes;
  const nat = (a, b) => { const behind = [a, b].filter((name) => groups.get(name).hidden); return !behind.length ? "" : behind.length < 2 ? ", through NAT" : all(a) && all(b) ? ", relayed by a gateway" : ", through NAT or relayed by a gateway"; };
  const through = (a, b) => `${store.overview?.encrypted_between_sites ? "encrypted (WireGuard)" : "tunnel (VXLAN, not encrypted)"}${nat(a, b)}${[a, b].some((name) => groups.get(name).translated) ? ", through address translation" : ""}`;
  const facts = (group) => [group.translated ? ` · ${n(group.translated)} reached at another address than their own (address translation)` : "", group.hidden ? ` · ${n(group.hidden)} behind NAT` : "", group.told ? ` · fast path on ${n(group.fast)} of ${n(group.told)}` : ""].map((text) => h("span.muted", {}, text));
  const way = (path) => (path?.measured ? `${path.lost ? `${n(path.lost)} of ${n(path.measured)} lost` : "passes"}, ${ms(path.rtt_us)}` : "not measured");
  return [drawn,
    h("ul.feed", { "aria-label": "Sites" }, names.map((name) => h("li", {}, h("span", { class: groups.get(name).cloud ? "k-cloud" : "k-external" }, groups.get(name).cloud ? "☁" : "▦"), h("span.what.wrap", {}, site(name), h("span.muted", {}, ` · ${n(groups.get(name).up)} of ${plural(groups.get(name).nodes, "node")} up`), facts(groups.get(name)), (holders.get(name) ?? []).map((text) => h("span.muted", {}, ` · gateway ${text}`))), h("span.when", {}, "")))),
    ways.length ? h("ul.feed", { "aria-label": "Ways between sites" }, ways.map(({ a, b, there, back, kind }) => h("li", {}, h(`i.heat.${kind}.key`, { "aria-hidden": "true" }), h("span.what.wrap", {}, `${site(a)} ↔ ${site(b)}`, h("span.muted", {}, store.live ? ` · ${through(a, b)} · there: ${way(there)} · back: ${way(back)}` : ` · ${through(a, b)}`)), h("span.when", {}, store.live ? WORDS[kind] : "")))) : ""];
}

export function pathsTable(name, paths) {
  const peers = new Map();
  for (const path of paths) {
    const other = path.by === name ? path.of : path.by;
    const both = peers.get(other) ?? {};
    both[path.by === name ? "there" : "back"] = path;
    peers.set(other, both);
  }
  const usual = median(paths.map((p) => p.rtt_us ?? 0)) || 1;
  const order = ["lost", "lossy", "slow", "slower", "none", "fine"];
  const rows = [...peers].map(([other, { there, back }]) => ({ other, there, back, kinds: [heat(there, usual), heat(back, usual)] }));
  rows.sort((x, y) => Math.min(...x.kinds.map((k) => order.indexOf(k))) - Math.min(...y.kinds.map((k) => order.indexOf(k))) || x.other.localeCompare(y.other));
  const shown = rows.slice(0, 60);
  return [h("div.scroll.matrix", { tabindex: "0", role: "region", "aria-label": "Paths, scrollable" }, h("table", { "aria-label": "Paths" },
    h("thead", {}, h("tr", {}, ["Peer", "There", "Back", "Usually", "Large packets", "Last answer"].map((label) => h("th", { scope: "col" }, label)))),
    h("tbody", {}, shown.map(({ other, there, back, kinds }) => h("tr", {}, h("td", {}, page(other)), cell(there, kinds[0], `${name} to ${other}`), cell(back, kinds[1], `${other} to ${name}`),
      h("td.num", {}, there?.usual_us ? ms(there.usual_us) : "–"),
      h("td", {}, { ok: "pass", lost: "LOST" }[there?.large] ?? "not known"), h("td", {}, (there?.age_s ?? -1) >= 0 ? `${took(there.age_s)} ago` : "–")))))),
    rows.length > shown.length ? h("p.muted", {}, `The ${n(shown.length)} worst of ${plural(rows.length, "peer")}.`) : ""];
}

export const hops = (traces) => traces.map((trace) => h("div", {}, h("h3", {}, `From ${trace.by} to ${trace.of}`), h("p.muted", {}, trace.stops ? `stops at ${trace.stops}` : "no hop is known to fail", `, looked at ${took(trace.age_s)} ago`),
  h("ol.feed", {}, (trace.hops ?? []).map((hop) => h("li", {}, h("span", { class: hop.passed === false ? "error-text" : "muted" }, hop.passed === false ? "✕" : hop.passed ? "✓" : "?"), h("span.what", { title: hop.text ?? "" }, `${hop.name}${hop.text ? `: ${hop.text}` : ""}`), h("span.when", {}, ""))))));

export class MeshPage {
  constructor(go, of = "", a = "", b = "") {
    this.go = go;
    // Which part is looked into: two sites, or two nodes; in the address, so that a link shows the same.
    [this.of, this.a, this.b] = [of, a, b];
    this.top = h("div.head", {}, h("h1", {}, this.of === "nodes" ? `${this.a} and ${this.b}` : this.of === "sites" ? `${site(this.a)} and ${site(this.b)}` : "Mesh"));
    this.content = h("div.stack", {});
    this.element = h("div.page", {}, this.of ? h("p", {}, link("/mesh", "← Mesh")) : "", this.top, this.content);
    this.timer = setInterval(() => { if (store.live && !document.hidden) this.load(); }, EVERY_MS);
  }

  close() { clearInterval(this.timer); }

  update(parts) {
    if (store.ready && (parts.has("all") || parts.has("events"))) this.load();
  }

  async load() {
    const asked = new URLSearchParams(this.of === "sites" ? { site: this.a, other: this.b } : this.of === "nodes" ? { node: this.a, peer: this.b } : store.nodes.size <= NODES_SHOWN ? { nodes: "true" } : {});
    const answer = await store.get(`mesh?${asked}${store.suffix("&")}`).catch((error) => ({ error }));
    this.show(answer);
  }

  open(kind, a, b) { this.go(`/mesh/${kind}/${encodeURIComponent(a)}/${encodeURIComponent(b)}`); }

  show(answer) {
    const panel = (title, ...content) => h("section.panel", {}, h("header", {}, h("h2", {}, title)), ...content);
    if (answer.error) { this.content.replaceChildren(panel("Not here", h("p.muted", {}, answer.error.message))); return; }
    const { mesh, measured } = answer;
    if (this.of === "nodes") mesh.findings = mesh.findings.filter((one) => this.concerns(one));
    const heading = this.top.firstChild;
    const lost = mesh.findings.filter((one) => one.scope !== "view").length;
    this.top.replaceChildren(heading, lost ? stateLabel("unreachable", plural(lost, "finding")) : measured ? (mesh.capable ? stateLabel("ready", "pods reach each other") : stateLabel("unknown", "not known whether pods reach each other")) : "", measured ? h("span.muted", {}, `${n(mesh.capable)} of ${plural(mesh.nodes, "node")} measure`) : "");
    const panels = [];
    if (mesh.findings.length) panels.push(panel("What does not pass", findings(mesh.findings)));
    if (!measured) panels.push(panel("Measurements", h("p.muted", {}, "Measurements are of the present only and not kept. Of this moment the findings above were recorded", mesh.findings.length ? "." : ": there was none.")));
    if (!measured && !this.of && lost && store.nodes.size <= 400) {
      const then = recordedPaths(mesh.findings);
      const names = [...new Set(then.sites.flatMap((path) => [path.a, path.b]))].sort();
      panels.push(panel("By site, as it was recorded", matrix("Paths between sites", names, then.sites, site, null)));
      if (store.nodes.size <= NODES_SHOWN) panels.push(panel("By node, as it was recorded", matrix("Paths between nodes", [...store.nodes.keys()].sort(), then.paths, page, null)));
    }
    if (this.of === "nodes") {
      if (measured) panels.push(panel("Measured", pathsTable(this.a, mesh.paths)), panel("Hop by hop", mesh.traces.length ? hops(mesh.traces) : h("p.muted", {}, "No agent has traced this pair: it does so when packets are lost. In a terminal: ", mono(`isthmus mesh ${this.a} ${this.b}`))));
    } else if (measured) {
      const names = [...new Set([...mesh.sites.flatMap((path) => [path.a, path.b])])].sort();
      if (!this.of && names.length) panels.push(panel("By site", matrix("Paths between sites", names, mesh.sites, site, (a, b) => this.open("sites", a, b)), LEGEND()));
      const members = [...new Set(mesh.paths.flatMap((path) => [path.by, path.of]))].sort();
      if (members.length && members.length <= NODES_SHOWN) panels.push(panel("By node", matrix("Paths between nodes", members, mesh.paths, page, (a, b) => { if (a !== b) this.open("nodes", a, b); }), this.of ? LEGEND() : ""));
      else if (members.length) panels.push(panel("By node", this.worst(mesh.paths)));
      if (!names.length && !members.length) panels.push(panel("Measured", h("p.empty", {}, "Nothing is measured yet. Agents of this release measure by themselves.")));
      for (const [title, list] of [["Not heard lately", mesh.quiet], ["Not measuring", mesh.unmeasured]]) if (!this.of && list?.length) panels.push(panel(title, h("p", {}, list.flatMap((name, i) => [i ? ", " : "", page(name)]))));
    }
    if (!this.of) panels.push(panel("Topology", topology(measured ? mesh.sites : recordedPaths(mesh.findings).sites)));
    // What somebody has the focus on stays where it is when the numbers are new.
    const at = [...this.content.querySelectorAll("button, a, [tabindex]")].indexOf(document.activeElement);
    const scrolled = [...this.content.querySelectorAll(".matrix")].map((box) => box.scrollLeft);
    this.content.replaceChildren(...panels);
    [...this.content.querySelectorAll(".matrix")].forEach((box, i) => { box.scrollLeft = scrolled[i] ?? 0; });
    if (at >= 0) this.content.querySelectorAll("button, a, [tabindex]")[at]?.focus({ preventScroll: true });
  }

  // Whether a finding is about these two nodes, or about a site of theirs.
  concerns(one) {
    const ends = [this.a, this.b];
    const sites = ends.map((name) => store.nodes.get(name)?.site);
    return { cluster: true, site: sites.includes(one.a), sites: sites.includes(one.a) && sites.includes(one.b), pair: ends.includes(one.a) && ends.includes(one.b) }[one.scope] ?? ends.includes(one.a);
  }

  worst(paths) {
    const usual = median(paths.map((p) => p.rtt_us ?? 0)) || 1;
    const order = ["lost", "lossy", "slow", "slower"];
    const bad = paths.map((path) => [heat(path, usual), path]).filter(([kind]) => order.includes(kind)).sort((x, y) => order.indexOf(x[0]) - order.indexOf(y[0]) || y[1].rtt_us - x[1].rtt_us).slice(0, 60);
    if (!bad.length) return h("p.muted", {}, `All of ${plural(paths.length, "measured path")} pass.`);
    return h("ul.feed", { "aria-label": "Worst paths" }, bad.map(([kind, path]) => h("li", {}, h(`i.heat.${kind}.key`, { "aria-hidden": "true" }), h("span.what", {}, h("button.plain", { type: "button", onclick: () => this.open("nodes", path.by, path.of) }, `${path.by} → ${path.of}`)), h("span.when", {}, `${WORDS[kind]}, ${ms(path.rtt_us ?? 0)}`))));
  }
}

const LEGEND = () => h("ul.legend", {}, ["fine", "slower", "slow", "lossy", "lost", "none"].map((kind) => h("li", {}, h(`i.heat.${kind}`, { "aria-hidden": "true" }), WORDS[kind])));
