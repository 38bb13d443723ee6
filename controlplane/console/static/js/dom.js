// Small helpers: elements without innerHTML (nothing from the log is ever parsed as markup), numbers, times, colours.

export function h(tag, props, ...children) {
  const [name, ...classes] = tag.split(".");
  const element = document.createElement(name || "div");
  if (classes.length) element.className = classes.join(" ");
  for (const [key, value] of Object.entries(props || {})) {
    if (value === undefined || value === null || value === false) continue;
    if (key.startsWith("on")) element.addEventListener(key.slice(2), value);
    else if (key === "css") for (const [k, v] of Object.entries(value)) element.style.setProperty(k, v);
    else if (key === "class") element.className += ` ${value}`;
    else if (key in element && typeof value !== "string") element[key] = value;
    else element.setAttribute(key, value === true ? "" : value);
  }
  element.append(...children.flat(9).filter((child) => child !== undefined && child !== null && child !== false));
  return element;
}

export const $ = (id) => document.getElementById(id);
const plain = new Intl.NumberFormat("en");
export const n = (value) => plain.format(value);
export const plural = (count, word) => `${n(count)} ${word}${count === 1 ? "" : "s"}`;

export function took(seconds) {
  if (seconds === null || seconds === undefined) return "–";
  if (seconds < 0.001) return `${Math.round(seconds * 1e6)} µs`;
  if (seconds < 1) return `${(seconds * 1000).toFixed(seconds < 0.01 ? 1 : 0)} ms`;
  if (seconds < 90) return `${seconds.toFixed(seconds < 10 ? 1 : 0)} s`;
  if (seconds < 5400) return `${Math.round(seconds / 60)} min`;
  if (seconds < 129600) return `${Math.round(seconds / 3600)} h`;
  return `${Math.round(seconds / 86400)} d`;
}

export function ago(iso) {
  if (!iso) return "";
  const seconds = (Date.now() - Date.parse(iso)) / 1000;
  return seconds < 1.5 ? "now" : `${took(seconds)} ago`;
}

const clock = new Intl.DateTimeFormat("en-GB", { hour: "2-digit", minute: "2-digit", second: "2-digit" });
const day = new Intl.DateTimeFormat("en-GB", { year: "numeric", month: "short", day: "2-digit" });
export function moment(iso, always) {
  if (!iso) return "";
  const date = new Date(iso);
  const today = day.format(date) === day.format(new Date());
  return today && !always ? clock.format(date) : `${day.format(date)} ${clock.format(date)}`;
}

// A colour variable as the canvas understands it; light-dark() only resolves on an element.
const probe = document.createElement("span");
const known = new Map();
export function colour(name) {
  if (!known.has(name)) {
    if (!probe.isConnected) { probe.hidden = true; document.body.append(probe); }
    probe.style.color = `var(--${name})`;
    known.set(name, getComputedStyle(probe).color);
  }
  return known.get(name);
}
export const forgetColours = () => known.clear();

// Size a canvas to its box in device pixels; returns a context in CSS pixels.
export function context(canvas, width, height) {
  const scale = window.devicePixelRatio || 1;
  canvas.width = Math.round(width * scale);
  canvas.height = Math.round(height * scale);
  canvas.style.height = `${height}px`;
  const drawing = canvas.getContext("2d");
  drawing.setTransform(scale, 0, 0, scale, 0, 0);
  return drawing;
}

export function tip(text, event) {
  const box = $("tip");
  box.hidden = !text;
  if (!text) return;
  box.textContent = text;
  const { width, height } = box.getBoundingClientRect();
  box.style.left = `${Math.max(6, Math.min(event.clientX + 14, innerWidth - width - 6))}px`;
  box.style.top = `${event.clientY + 18 + height > innerHeight ? event.clientY - height - 10 : event.clientY + 18}px`;
}

// What a screen reader says: at once for an answer to a key, and for what happens by itself a sentence now and
// then, not every event of a storm, and none over such an answer.
let said = 0;
export function speak(text) {
  said = Date.now();
  $("announce").textContent = text;
}
export function announce(text) {
  if (Date.now() - said >= 8000) speak(text);
}

export function address(text) {
  return text.split("/")[0].split(".").reduce((value, part) => value * 256 + Number(part), 0);
}
export function dotted(value) {
  return [24, 16, 8, 0].map((shift) => Math.floor(value / 2 ** shift) % 256).join(".");
}

export function eventBadge({ type, mark }) {
  const [aggregate, verb] = type.split(".");
  const short = verb.includes("refused") ? "refused" : verb;
  const alike = { "holder-assigned": "reserved", "holder-withdrawn": "left", lost: "unreachable", restored: "recovered" };
  const kind = alike[verb] ?? (["joined", "allocated", "recovered", "reserved", "left", "draining", "released", "quarantined", "fenced", "unreachable", "refused"].includes(short) ? short : "other");
  return h(`span.badge.${kind}`, { title: `${aggregate} ${verb}`, "aria-hidden": "true" }, mark);
}

export const stateWord = (name) => (name === "unreported" ? "never reported" : name);
export const stateLabel = (name, text) => h(`span.state.${name}`, {}, h("i", { "aria-hidden": "true" }), text || stateWord(name));
// A trace by what was done, in an operator's words.
const DEEDS = { "mark-liveness": "note who stopped or began to report" };
export const deed = (name) => (name.startsWith("process command.") ? DEEDS[name.slice(16)] ?? name.slice(16).replaceAll("-", " ") : name);
const VERDICTS = { agrees: ["good", "✓ agrees"], differs: ["bad", "✕ differs"], unchecked: ["", "not compared yet"], "": ["", "not reported"] };
// The attestation of a node's kernel, as compared with the log.
export const kernelLabel = (node) => { const [tone, text] = VERDICTS[node.kernel ?? ""]; return h(`span.kernel.${node.stale ? "none" : tone || "none"}`, { title: node.kernel_at ? `compared at event ${node.kernel_at}` : "" }, node.stale && node.kernel ? `${text} when last heard` : text); };
export const kindLabel = (kind) => h(`span.k-${kind}`, {}, kind);
export const link = (path, ...children) => h("a", { href: `#${path}` }, ...children);
export const mono = (...children) => h("span.mono", {}, ...children);
