// The frame of the console: routes, theme, link state, time travel.

import { $, ago, forgetColours, h, moment, n } from "./dom.js";
import { ClbListPage, ClbPage } from "./clb.js";
import { EventPage, EventsPage } from "./events.js";
import { MeshPage } from "./mesh.js";
import { NodePage, NodesPage } from "./nodes.js";
import { OverviewPage } from "./overview.js";
import { PlanPage } from "./plan.js";
import { store } from "./store.js";
import { Timeline } from "./timeline.js";
import { TracePage, TracesPage } from "./traces.js";

const ROUTES = [
  [/^\/$/, OverviewPage, "Overlay", "#/"],
  [/^\/nodes$/, NodesPage, "Nodes", "#/nodes"],
  [/^\/nodes\/(.+)$/, NodePage, "Node", "#/nodes"],
  [/^\/mesh$/, MeshPage, "Mesh", "#/mesh"],
  [/^\/mesh\/(sites|nodes)\/([^/]*)\/([^/]*)$/, MeshPage, "Mesh", "#/mesh"],
  [/^\/events$/, EventsPage, "Events", "#/events"],
  [/^\/events\/(\d+)$/, EventPage, "Event", "#/events"],
  [/^\/traces$/, TracesPage, "Traces", "#/traces"],
  [/^\/traces\/([0-9a-f]{32})$/, TracePage, "Trace", "#/traces"],
  [/^\/clb$/, ClbListPage, "CLB", "#/clb"],
  [/^\/clb\/(.+)$/, ClbPage, "CLB", "#/clb"],
  [/^\/plan$/, PlanPage, "Plan", "#/plan"],
];

let page = null;
let shown = "";

function where() {
  const [path, query = ""] = (location.hash.slice(1) || "/").split("?");
  const asked = new URLSearchParams(query);
  const at = asked.get("at");
  return { path, at: at === null || at === "" || Number.isNaN(Number(at)) ? null : Number(at), time: asked.get("time") };
}

// The address holds the page and the moment shown, so that a link shows somebody else the same.
function go(path, { at = null, time = null } = { at: store.at, time: store.time }) {
  const target = `#${path}${time !== null ? `?time=${time}` : at === null ? "" : `?at=${at}`}`;
  if (location.hash !== target) location.hash = target;
}

function route() {
  const { path, at, time } = where();
  if (time !== store.time || (time === null && at !== store.at)) store.travel(at, { time });
  if (path === shown) return;
  shown = path;
  page?.close?.();
  const found = ROUTES.map(([pattern, ...rest]) => [path.match(pattern), ...rest]).find(([match]) => match);
  const [match, Page, title, tab] = found ?? [[], null, "Nothing here", ""];
  page = Page ? new Page(go, ...match.slice(1).map(decodeURIComponent)) : { element: h("p.empty", {}, "There is no such page."), update() {} };
  $("main").replaceChildren(page.element);
  $("main").scrollTop = 0;
  document.title = `${title} · Isthmus`;
  for (const entry of $("nav").querySelectorAll("a")) {
    if (entry.getAttribute("href") === tab) entry.setAttribute("aria-current", "page"); else entry.removeAttribute("aria-current");
  }
  page.update(new Set(["all"]));
}

function showPosition() {
  const past = $("past");
  past.hidden = store.live;
  const chip = $("live");
  chip.dataset.state = store.link === "lost" ? "lost" : store.live ? store.link : "past";
  chip.textContent = store.link === "lost" ? "connection lost, trying again" : store.live ? (store.link === "live" ? "Live" : "connecting") : store.at === null ? "in the past" : `As of ${n(store.at)}`;
  if (store.live || store.at === null) return;
  const position = store.overview?.position.sequence === store.at ? store.overview.position : null;
  const shown = position && (store.time ?? position.at);
  const unknown = position && !position.recorded;
  past.replaceChildren(h("b", {}, `You are looking at event ${n(store.at)}`), h("span", {}, shown ? `${moment(shown, true)}, ${ago(shown)}` : ""), h("span.muted", {}, `${n(store.head - store.at)} events before the present`),
    unknown && h("span.unrecorded", {}, position.recorded_from && position.moment < position.recorded_from ? `Agents and convergence: not recorded; the record begins ${moment(position.recorded_from, true)}` : "Agents and convergence: not recorded then (no controller was watching)") || "", h("div.spacer", {}),
    position && position.last > store.at && h("span.unrecorded", {}, `In the middle of one command (events ${n(position.first)} to ${n(position.last)}): only a part of what it did is seen. `, h("a", { href: `#${where().path}?at=${position.last}` }, "See all of it")) || "",
    h("button.plain", { type: "button", onclick: () => go(where().path, {}) }, "Back to the present"));
}

function theme() {
  const button = $("theme");
  const choices = ["system", "light", "dark"];
  const marks = { system: "◐", light: "☀", dark: "☾" };
  const apply = (choice) => {
    if (choice === "system") delete document.documentElement.dataset.theme; else document.documentElement.dataset.theme = choice;
    button.textContent = marks[choice];
    button.setAttribute("aria-label", `Theme: ${choice === "system" ? "as the system" : choice}`);
    button.title = button.getAttribute("aria-label");
    forgetColours();
    store.changed("theme", "all");
  };
  let choice = localStorage.getItem("isthmus.theme");
  if (!choices.includes(choice)) choice = "system";
  button.addEventListener("click", () => {
    choice = choices[(choices.indexOf(choice) + 1) % choices.length];
    localStorage.setItem("isthmus.theme", choice);
    apply(choice);
  });
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => { forgetColours(); store.changed("theme", "all"); });
  apply(choice);
}

// With a token: typed once, or brought in the address (#token=…) by the line that the controller prints.
async function letIn() {
  const brought = location.hash.match(/^#token=(.+)$/);
  if (brought) history.replaceState(null, "", "#/");
  const session = async (token) => {
    const response = token === undefined ? await fetch("/api/v1/session")
      : await fetch("/api/v1/login", { method: "POST", headers: { "content-type": "application/json" }, body: JSON.stringify({ token }) });
    return response.ok && (await response.json()).allowed;
  };
  if (brought && (await session(decodeURIComponent(brought[1])))) return;
  if (await session()) return;
  await new Promise((resolve) => {
    const token = h("input", { type: "password", autocomplete: "current-password", id: "token", required: true });
    const problem = h("p.error-text", { role: "alert" });
    const form = h("form.login.panel", { onsubmit: async (event) => {
      event.preventDefault();
      if (await session(token.value)) resolve(); else problem.textContent = "That is not the token.";
    } }, h("h1", {}, "Isthmus"), h("label", { for: "token" }, "Token of this controller (ISTHMUS_HTTP_TOKEN)"), token, problem, h("button.plain.primary", { type: "submit" }, "Open"));
    $("main").replaceChildren(form);
    token.focus();
  });
  $("main").replaceChildren();
}

async function start() {
  theme();
  await letIn();
  const timeline = new Timeline((when) => go(where().path, when));
  let parts = new Set();
  let frame = 0;
  const flush = () => {
    frame = 0;
    const now = parts;
    parts = new Set();
    if (store.overview) $("cluster").textContent = store.overview.cluster;
    showPosition();
    if (now.has("error")) $("announce").textContent = store.error;
    if (now.has("head")) timeline.grown(); else timeline.show();
    page?.update(now);
  };
  store.addEventListener("change", (event) => {
    for (const part of event.detail) parts.add(part);
    frame ||= requestAnimationFrame(flush);
  });
  store.addEventListener("locked", () => location.reload());
  addEventListener("hashchange", route);
  // A link from a page of the past leads to the same moment of the next page.
  document.addEventListener("click", (event) => {
    const href = event.target.closest?.("a")?.getAttribute("href");
    if (store.live || !href?.startsWith("#/") || href.includes("?") || event.ctrlKey || event.metaKey || event.shiftKey) return;
    event.preventDefault();
    go(href.slice(1));
  });
  store.at = where().at;
  store.time = where().time;
  if (store.time !== null) store.at = null;
  store.travel = store.travel.bind(store);
  route();
  store.listen();
  await Promise.all([store.load(), timeline.load()]);
  setInterval(() => { if (!document.hidden) { showPosition(); timeline.show(); } }, 5000);
}

start();
