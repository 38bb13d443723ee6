// The frame of the console: routes, theme, link state, time travel.

import { $, ago, forgetColours, h, moment, n } from "./dom.js";
import { EventPage, EventsPage } from "./events.js";
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
  [/^\/events$/, EventsPage, "Events", "#/events"],
  [/^\/events\/(\d+)$/, EventPage, "Event", "#/events"],
  [/^\/traces$/, TracesPage, "Traces", "#/traces"],
  [/^\/traces\/([0-9a-f]{32})$/, TracePage, "Trace", "#/traces"],
  [/^\/plan$/, PlanPage, "Plan", "#/plan"],
];

let page = null;
let shown = "";

function where() {
  const [path, query = ""] = (location.hash.slice(1) || "/").split("?");
  const at = new URLSearchParams(query).get("at");
  return { path, at: at === null || at === "" ? null : Number(at) };
}

// The address holds the page and the sequence shown, so that a link shows somebody else the same.
function go(path, at = store.at) {
  const target = `#${path}${at === null ? "" : `?at=${at}`}`;
  if (location.hash !== target) location.hash = target;
}

function route() {
  const { path, at } = where();
  if ((at === null) !== store.live || (at !== null && at !== store.at)) store.travel(at);
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
  chip.textContent = store.link === "lost" ? "connection lost, trying again" : store.live ? (store.link === "live" ? "Live" : "connecting") : `As of ${n(store.at)}`;
  if (store.live) return;
  const at = store.overview?.position.sequence === store.at ? store.overview.position.at : null;
  past.replaceChildren(h("b", {}, `You are looking at event ${n(store.at)}`), h("span", {}, at ? `${moment(at, true)}, ${ago(at)}` : ""), h("span.muted", {}, `${n(store.head - store.at)} events before the present`), h("div.spacer", {}),
    h("button.plain", { type: "button", onclick: () => go(where().path, null) }, "Back to the present"));
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
  const timeline = new Timeline((at) => go(where().path, at));
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
  store.travel = store.travel.bind(store);
  route();
  store.listen();
  await Promise.all([store.load(), timeline.load()]);
  setInterval(() => { if (!document.hidden) { showPosition(); timeline.show(); } }, 5000);
}

start();
