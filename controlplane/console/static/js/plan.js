// The address plan and what lies around it: CIDRs, the Service range, networks to stay clear of, CLB pairs.

import { h, link, mono, n } from "./dom.js";
import { store } from "./store.js";

export class PlanPage {
  constructor() {
    this.content = h("div.two", {});
    this.element = h("div.page", {}, h("div.head", {}, h("h1", {}, "Plan")), this.content);
  }

  update() {
    if (!store.ready) return;
    const o = store.overview;
    const panel = (title, ...content) => h("section.panel", {}, h("header", {}, h("h2", {}, title)), ...content);
    const fact = (label, value) => h("div", {}, h("dt", {}, label), h("dd", {}, value));
    const table = (label, heads, rows, empty) => h("div.scroll", rows.length ? { tabindex: "0", role: "region", "aria-label": `${label}, scrollable` } : {}, rows.length ? h("table", { "aria-label": label }, h("thead", {}, h("tr", {}, heads.map((head) => h("th", { scope: "col" }, head)))), h("tbody", {}, rows)) : h("p.empty", {}, empty));
    if (!o.defined) { this.content.replaceChildren(panel("No cluster yet", h("p", {}, "isthmus cluster define --cidr 172.16.0.0/16 --pods 64 --services 256"))); return; }
    const { pool } = o;
    this.content.replaceChildren(
      panel("Overlay", h("dl.facts", {}, fact("Cluster", mono(o.cluster)), fact("VNI", n(o.vni)), fact("VXLAN port", mono(String(o.vxlan_port))), fact("Service range", mono(pool.service_cidr)),
        fact("Range of a node", `${n(pool.range_size)} addresses, ${n(pool.pods_per_node)} pods`), fact("Ranges", n(pool.capacity)), fact("Cursor", n(pool.cursor)), fact("Next range", pool.next_range ? mono(pool.next_range) : "none"), fact("Installations fenced", n(o.fenced)))),
      panel("Container CIDRs", table("Container CIDRs", ["CIDR", "Ranges", "Allocated", "Draining", "Quarantined", "Free"], pool.cidrs.map((c) => h("tr", {}, h("td", {}, mono(c.cidr)), ...[c.capacity, c.allocated, c.draining, c.quarantined, c.free].map((value) => h("td.num", {}, n(value))))), "")),
      panel("Private CLB", table("CLB reservations", ["Name", "Subnet", "Address", "Serves"], o.clb.flatMap((clb) => clb.addresses.map((a, i) => h("tr", {}, h("td", {}, i ? "" : link(`/clb/${encodeURIComponent(clb.name)}`, clb.name)), h("td", {}, i ? "" : mono(clb.subnet)), h("td", {}, mono(a.address)), h("td", {}, a.purpose)))), "No pair reserved. isthmus clb reserve NAME --subnet CIDR")),
      panel("Networks to stay clear of", table("Networks", ["CIDR", "Kind", "Name"], o.networks.map((net) => h("tr", {}, h("td", {}, mono(net.cidr)), h("td", {}, net.kind), h("td", {}, net.name || "–"))), "None declared")),
      panel("For programs", h("p", {}, "This console only reads an API that you can use, too: ", h("a", { href: "/api/openapi.json" }, "OpenAPI document"), ", ", h("a", { href: "/metrics" }, "Prometheus metrics"), ".")));
  }
}
