// The log as a list, and one event with everything that hangs on it.

import { ago, eventBadge, h, link, moment, mono, n, took } from "./dom.js";
import { store } from "./store.js";

export class EventsPage {
  constructor(go) {
    this.rows = [];
    this.aggregate = h("select", { "aria-label": "Kind of event", onchange: () => this.load() }, h("option", { value: "" }, "Every kind"),
      ["node", "range", "allocation", "clb", "entry", "cluster"].map((value) => h("option", { value }, value)));
    this.entity = h("input.wide", { type: "search", placeholder: "Node, range (CIDR) or reservation", "aria-label": "Filter by node, range or reservation", onchange: () => this.load() });
    this.body = h("tbody", {});
    this.older = h("button.plain", { type: "button", onclick: () => this.more() }, "Older");
    this.count = h("span.muted", { role: "status" });
    this.element = h("div.page", {}, h("div.head", {}, h("h1", {}, "Events"), this.count, h("div.spacer", {}), h("div.tools", {}, this.entity, this.aggregate)),
      h("div.grid", { tabindex: "0", role: "region", "aria-label": "Events, scrollable" }, h("table", { "aria-label": "Events" }, h("thead", {}, h("tr", {}, [["Sequence"], ["Time"], ["Event"], ["Who asked", "c-actor"], ["Trace", "c-trace"]].map(([label, name]) => h("th", { scope: "col", class: name }, label)))), this.body)),
      h("div", {}, this.older));
    this.load();
  }

  update(parts) {
    if (parts.has("all") || parts.has("position")) this.load();
    else if (parts.has("events") && store.live && !this.entity.value && !this.aggregate.value) {
      const known = this.rows[0]?.sequence ?? 0;
      const fresh = store.events.filter((event) => event.sequence > known);
      if (fresh.length && fresh.length < store.events.length) { this.rows = [...fresh, ...this.rows].slice(0, 1000); this.show(); }
      else if (fresh.length) this.load();
    }
  }

  query(before) {
    const parts = new URLSearchParams({ limit: 100 });
    if (before) parts.set("before", before);
    if (this.entity.value.trim()) parts.set("entity", this.entity.value.trim());
    if (this.aggregate.value) parts.set("aggregate", this.aggregate.value);
    return store.get(`events?${parts}`);
  }

  async load() {
    if (!store.live && store.at === null) return;
    const page = await this.query(store.live ? 0 : store.at + 1).catch(() => ({ events: [], before: 0 }));
    this.rows = page.events;
    this.before = page.before;
    this.show();
  }

  async more() {
    const page = await this.query(this.before);
    this.rows = [...this.rows, ...page.events];
    this.before = page.before;
    this.show();
  }

  show() {
    this.count.textContent = this.rows.length ? `${n(this.rows.length)} shown` : "";
    this.older.hidden = !this.before;
    this.body.replaceChildren(...this.rows.map((event) => h("tr", {}, h("td.num", {}, link(`/events/${event.sequence}`, n(event.sequence))), h("td", { title: event.time }, moment(event.time)),
      h("td.c-event", {}, h("span.state", {}, eventBadge(event), h("span", {}, event.summary))), h("td.c-actor.muted", {}, event.actor), h("td.c-trace", {}, event.trace_id ? link(`/traces/${event.trace_id}`, mono(event.trace_id.slice(0, 8))) : "–"))));
    if (!this.rows.length) this.body.replaceChildren(h("tr", {}, h("td.empty", { colSpan: 5 }, "No events")));
  }
}

export class EventPage {
  constructor(go, sequence) {
    this.go = go;
    this.sequence = Number(sequence);
    this.content = h("div.two", {});
    this.top = h("div.head", {}, h("h1", {}, `Event ${n(this.sequence)}`));
    this.element = h("div.page", {}, h("p", {}, link("/events", "← Events")), this.top, this.content);
    this.load();
  }

  update(parts) { if (parts.has("convergence") || parts.has("all")) this.measure(); }

  async load() {
    try {
      this.event = await store.get(`events/${this.sequence}`);
      this.show();
      await this.measure();
    } catch (error) {
      this.content.replaceChildren(h("p.empty", {}, error.message));
    }
  }

  show() {
    const event = this.event;
    const panel = (title, ...content) => h("section.panel", {}, h("header", {}, h("h2", {}, title)), ...content);
    const fact = (label, value) => h("div", {}, h("dt", {}, label), h("dd", {}, value || "–"));
    this.top.replaceChildren(h("h1", {}, `Event ${n(event.sequence)}`), eventBadge(event), h("span", {}, event.summary), h("div.spacer", {}),
      h("button.plain", { type: "button", onclick: () => this.go("/", { at: event.last }) }, "Show everything as of here"));
    this.convergence = panel("Convergence", h("p.muted", {}, "…"));
    const node = event.data.node;
    this.content.replaceChildren(
      panel("Envelope", h("dl.facts", {}, fact("Type", mono(event.type)), fact("Of", mono(event.entity)), node ? fact("Node", link(`/nodes/${encodeURIComponent(node)}`, node)) : "", fact("Decided", `${moment(event.time, true)} (${ago(event.time)})`),
        fact("Who asked", event.actor), fact("Command", mono(event.command_id)), fact("Trace", event.trace_id ? link(`/traces/${event.trace_id}`, mono(event.trace_id)) : "none"))),
      this.convergence, panel("Body", h("pre", { tabindex: "0", role: "region", "aria-label": "Body" }, JSON.stringify(event.data, null, 2))));
  }

  async measure() {
    if (!this.convergence) return;
    let found;
    try { found = await store.get(`convergence/${this.sequence}${store.suffix()}`); } catch (error) {
      this.convergence.replaceChildren(h("header", {}, h("h2", {}, "Convergence")), h("p.muted", {}, error.message));
      return;
    }
    const fact = (label, value) => h("div", {}, h("dt", {}, label), h("dd.num", {}, value));
    this.convergence.replaceChildren(h("header", {}, h("h2", {}, "Convergence"), h("span.muted", {}, `${n(found.applied)} of ${n(found.expected)} agents`)),
      h("dl.facts", {}, fact("First agent", took(found.first)), fact("Median", took(found.median)), fact("p99", took(found.p99)), fact("Last agent", took(found.last))),
      ...(found.slowest.length ? [h("p.muted", {}, "Last to confirm: ", found.slowest.slice(-5).reverse().map(({ node: name, seconds }, i) => [i ? ", " : "", link(`/nodes/${encodeURIComponent(name)}`, name), ` ${took(seconds)}`]))] : []),
      ...(found.behind.length ? [h("p", {}, h("b", {}, "Behind: "), found.behind.map((name, i) => [i ? ", " : "", link(`/nodes/${encodeURIComponent(name)}`, name)]))] : []));
  }
}
