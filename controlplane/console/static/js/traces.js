// Recent traces of the built-in store, and one trace as a waterfall.

import { deed, h, link, moment, mono, n, took } from "./dom.js";
import { store } from "./store.js";

const SERVICE_COLOURS = { "isthmus-cli": "service", "isthmus-controller": "allocated", "isthmus-agent": "external" };
const tint = (service) => `var(--${SERVICE_COLOURS[service] ?? "quarantined"})`;

export class TracesPage {
  constructor() {
    this.errors = h("input", { type: "checkbox", id: "only-errors", onchange: () => this.load() });
    this.body = h("tbody", {});
    this.element = h("div.page", {}, h("div.head", {}, h("h1", {}, "Traces"), h("span.muted", {}, "the latest that were sampled"), h("div.spacer", {}), h("label.tools", {}, this.errors, " only errors and refusals")),
      h("div.grid", { tabindex: "0", role: "region", "aria-label": "Traces, scrollable" }, h("table", { "aria-label": "Traces" }, h("thead", {}, h("tr", {}, ["Started", "Trace", "Begun by", "Spans", "Processes", "Took"].map((label, i) => h("th", { scope: "col", class: `${i > 1 && i < 5 ? "c-more" : ""}${i > 2 ? " right" : ""}` }, label)))), this.body)));
    this.timer = setInterval(() => { if (!document.hidden) this.load(); }, 3000);
    this.load();
  }

  close() { clearInterval(this.timer); }

  update() {}

  async load() {
    const list = await store.get(`traces?limit=100${this.errors.checked ? "&errors=true" : ""}`).catch(() => []);
    this.body.replaceChildren(...list.map((trace) => h("tr", {}, h("td", {}, moment(trace.start_ns / 1e6)), h("td.c-event", {}, link(`/traces/${trace.trace_id}`, deed(trace.name)), trace.errors ? h("span.error-text", {}, "  ✕ refused or failed") : ""),
      h("td.c-more.muted", {}, `${trace.service.replace("isthmus-", "")} ${trace.instance}`), h("td.c-more.right.num", {}, n(trace.spans)), h("td.c-more.right.num", {}, n(trace.services)), h("td.right.num", {}, took(trace.duration_ms / 1000)))));
    if (!list.length) this.body.replaceChildren(h("tr", {}, h("td.empty", { colSpan: 6 }, "No trace is kept yet. Every command leaves one.")));
  }
}

export class TracePage {
  constructor(go, id) {
    this.id = id;
    this.content = h("div.panel", {});
    this.top = h("div.head", {}, h("h1", {}, "Trace"), mono(id));
    this.element = h("div.page", {}, h("p", {}, link("/traces", "← Traces")), this.top, this.content);
    this.load();
  }

  update() {}

  async load() {
    let trace;
    try { trace = await store.get(`traces/${this.id}`); } catch (error) {
      this.content.replaceChildren(h("p.empty", {}, error.message));
      return;
    }
    const total = Math.max(trace.duration_ms, 0.001);
    const seen = [...new Set(trace.rows.map((row) => row.span.service))];
    this.top.replaceChildren(h("h1", {}, deed(trace.rows[0]?.span.name ?? "Trace")), h("span.chip.num", {}, took(total / 1000)), h("span.chip", {}, `${n(trace.rows.length)} spans`), h("span.chip", {}, `${n(trace.services.length)} processes`),
      trace.errors ? h("span.error-text", {}, `✕ ${n(trace.errors)} refused or failed`) : "", h("div.spacer", {}), h("span.mono.muted", {}, this.id));
    this.content.replaceChildren(
      h("ul.legend", {}, seen.map((service) => h("li", {}, h("i", { css: { background: tint(service) } }), service)), trace.rows.some((row) => row.joined === "link") && h("li", {}, "↪ joined by a link, not a parent")),
      h("div.wf", { tabindex: "0", role: "region", "aria-label": "Waterfall" }, h("ol", {}, trace.rows.map((row) => this.row(row, total)))),
      trace.truncated ? h("p.muted", {}, "The store holds more spans of this trace than are shown.") : "");
  }

  row({ depth, joined, offset_ms, duration_ms, span }, total) {
    const error = span.status === "ERROR";
    const attributes = Object.entries(span.attributes ?? {}).map(([key, value]) => h("div", {}, h("dt", {}, key), h("dd", {}, mono(String(value)))));
    return h("li", { class: error ? "error" : "" }, h("details", {},
      h("summary", {}, h("span.name", { class: joined === "link" ? "linked" : "", css: { "--depth": depth } }, span.name, h("small", {}, `  ${span.service.replace("isthmus-", "")} ${span.instance ?? ""}`)),
        h("span.lane", { "aria-hidden": "true" }, h("i", { css: { left: `${(100 * offset_ms) / total}%`, width: `${(100 * duration_ms) / total}%`, background: tint(span.service) } })), h("span.took", {}, took(duration_ms / 1000))),
      h("div.detail", {}, error && h("p.error-text", {}, span.message), h("dl.facts", {}, h("div", {}, h("dt", {}, "kind"), h("dd", {}, (span.kind ?? "INTERNAL").toLowerCase())), h("div", {}, h("dt", {}, "starts at"), h("dd", {}, `+${took(offset_ms / 1000)}`)), attributes,
        (span.links ?? []).map((to) => h("div", {}, h("dt", {}, "link to"), h("dd", {}, link(`/traces/${to.trace_id}`, mono(`${to.trace_id.slice(0, 8)}…/${to.span_id}`)))))))));
  }
}
