// What the console knows: loaded once, then kept current by the stream, or fixed at a past sequence.

export const PHASES = ["free", "allocated", "draining", "quarantined"];
const CODE = { f: 0, a: 1, d: 2, q: 3 };
const FEED = 80;

class Store extends EventTarget {
  at = null; // the sequence shown; null is the present
  time = null; // the moment asked for (ISO), when it was a moment and not a sequence
  head = 0;
  link = "connecting";
  overview = null;
  space = null;
  nodes = new Map();
  events = [];
  convergence = [];
  loading = null;
  heads = [[0, 0]];
  ready = false;
  partial = false;

  changed(...parts) {
    this.dispatchEvent(new CustomEvent("change", { detail: new Set(parts) }));
  }

  // The head as it was two seconds ago: an agent counts as behind when it lacks that, not the blink after an event.
  get settled() {
    const now = Date.now();
    while (this.heads.length > 1 && this.heads[1][0] < now - 2000) this.heads.shift();
    return this.heads[0][0] < now - 2000 ? this.heads[0][1] : 0;
  }

  late(node) {
    return node.applied > 0 && node.applied < (this.live ? this.settled : this.overview?.position.settled ?? 0);
  }

  get live() { return this.at === null && this.time === null; }

  // Whether anything is known of the agents at the moment shown.
  get recorded() { return this.live || (this.overview?.position.recorded ?? true); }

  suffix(join = "?") { return this.live ? "" : this.time !== null ? `${join}time=${encodeURIComponent(this.time)}` : `${join}at=${this.at}`; }

  async get(path, options = {}) {
    const response = await fetch(`/api/v1/${path}`, { headers: { accept: "application/json" }, ...options });
    if (response.status === 401) { this.dispatchEvent(new Event("locked")); throw new Error("locked"); }
    const body = await response.json();
    if (!response.ok) throw Object.assign(new Error(body.message), { status: response.status, code: body.code });
    return body;
  }

  // Everything for the sequence shown. A newer call cancels an older one.
  async load({ brief = false } = {}) {
    this.loading?.abort();
    const control = (this.loading = new AbortController());
    const options = { signal: control.signal };
    const at = this.suffix();
    try {
      const and = this.suffix("&");
      const [overview, space, nodes, convergence] = await Promise.all([
        this.get(`overview${at}`, options),
        this.get(`space${at}`, options),
        brief ? null : this.get(`nodes?limit=20000${and}`, options),
        brief ? null : this.get(`convergence?limit=24${and}`, options),
      ]);
      const before = this.live ? "" : `&before=${overview.position.sequence + 1}`;
      const events = brief ? null : await this.get(`events?limit=${FEED}${before}`, options);
      if (control.signal.aborted) return;
      if (!this.live) this.at = overview.position.sequence;
      this.overview = overview;
      this.head = overview.position.head;
      if (this.heads.at(-1)[1] !== this.head) this.heads.push([overview.position.at ? Date.parse(overview.position.at) : 0, this.head]);
      this.space = unpack(space);
      if (nodes) this.nodes = new Map(nodes.nodes.map((node) => [node.name, node]));
      if (events) this.events = events.events;
      if (convergence) this.convergence = convergence;
      this.ready = true;
      this.changed("all");
    } catch (error) {
      if (error.name !== "AbortError" && error.message !== "locked") this.fail(error);
    }
  }

  fail(error) {
    this.error = error.message;
    this.changed("error");
  }

  // Go to a sequence or a moment (both null: the present). While a slider moves, only the picture follows.
  async travel(at, { brief = false, time = null } = {}) {
    const target = time !== null || at === null || (this.ready && at >= this.head) ? null : Math.max(0, at);
    if (time === this.time && (time !== null || target === this.at) && !brief && !this.partial) return;
    this.at = target;
    this.time = time;
    this.changed("position");
    this.partial = brief;
    if (!brief) { await this.load(); return; }
    // One question at a time: where the slider is when the answer comes is what is asked next.
    this.wanted = true;
    if (this.peeking) return;
    this.peeking = true;
    while (this.wanted && this.partial) { this.wanted = false; await this.load({ brief: true }); }
    this.peeking = false;
  }

  listen() {
    const source = new EventSource("/api/v1/live");
    source.addEventListener("hello", () => {
      const again = this.link === "lost";
      this.link = "live";
      this.changed("link");
      if (again && this.live) this.load();
    });
    source.addEventListener("frame", (message) => this.frame(JSON.parse(message.data)));
    source.addEventListener("full", () => { this.link = "lost"; this.changed("link"); });
    source.onerror = () => { if (this.link !== "lost") { this.link = "lost"; this.changed("link"); } };
  }

  frame(frame) {
    const grown = frame.head > this.head;
    this.head = Math.max(this.head, frame.head);
    if (grown) this.heads.push([Date.now(), this.head]);
    if (!this.live || !this.ready) { if (grown) this.changed("head"); return; }
    this.convergence = frame.convergence;
    if (frame.resync || frame.alarmed) { this.load(); return; }
    const overview = this.overview;
    overview.position = { ...overview.position, sequence: frame.head, head: frame.head, at: frame.at || overview.position.at };
    overview.agents_behind = frame.agents_behind;
    overview.watermark = frame.watermark;
    const parts = ["convergence"];
    for (const [name, state, applied, kernel, kernel_at] of frame.agents) {
      const node = this.nodes.get(name);
      if (node) Object.assign(node, { state, applied, kernel, kernel_at, age_s: 0, came_ms: Date.now(), stale: state === "silent" || state === "unreachable" });
    }
    if (frame.agents.length) { this.countAgents(); parts.push("agents"); }
    if (frame.conditions) { overview.conditions = frame.conditions; parts.push("conditions"); }
    if (frame.pool) {
      overview.pool = frame.pool;
      for (const [index, letter, node, epoch] of frame.ranges) put(this.space, index, CODE[letter], node, epoch);
      this.space.cursor = frame.pool.cursor;
      for (const name of frame.gone) this.nodes.delete(name);
      for (const node of frame.nodes) this.nodes.set(node.name, node);
      const known = this.events[0]?.sequence ?? 0;
      const fresh = frame.events.filter((event) => event.sequence > known);
      for (const event of fresh) event.fresh = true;
      this.events = [...fresh, ...this.events].slice(0, FEED);
      this.count();
      this.countAgents();
      parts.push("overlay", "events");
      if (frame.clb_changed) this.load();
    }
    if (grown) parts.push("head");
    this.changed(...parts);
  }

  countAgents() {
    const kernels = {};
    const agents = {};
    for (const node of this.nodes.values()) {
      agents[node.state ?? "unknown"] = (agents[node.state ?? "unknown"] ?? 0) + 1;
      const verdict = node.kernel || "unreported";
      kernels[verdict] = (kernels[verdict] ?? 0) + 1;
    }
    this.overview.kernels = kernels;
    this.overview.agents = agents;
  }

  count() {
    const overview = this.overview;
    const sites = new Map();
    let external = 0;
    let unreachable = 0;
    for (const node of this.nodes.values()) {
      const key = `${node.site}\n${node.kind}`;
      const site = sites.get(key) ?? { site: node.site, kind: node.kind, nodes: 0, unreachable: 0 };
      site.nodes += 1;
      external += node.kind === "external";
      if (node.state === "unreachable") { site.unreachable += 1; unreachable += 1; }
      sites.set(key, site);
    }
    overview.nodes = this.nodes.size;
    overview.external = external;
    overview.cloud = this.nodes.size - external;
    overview.unreachable = unreachable;
    overview.sites = [...sites.values()].sort((a, b) => a.site.localeCompare(b.site));
  }
}

function unpack(space) {
  const model = {
    cidrs: space.cidrs, size: space.range_size, service: space.service_cidr, capacity: space.capacity,
    cursor: space.cursor, phase: new Uint8Array(space.capacity), node: new Map(), epoch: new Map(), version: 0,
  };
  space.index.forEach((index, i) => put(model, index, CODE[space.phase[i]], space.node[i], space.epoch[i]));
  return model;
}

function put(model, index, code, node, epoch) {
  model.version += 1;
  model.phase[index] = code;
  if (code === 0) { model.node.delete(index); model.epoch.delete(index); }
  else { model.node.set(index, node); model.epoch.set(index, epoch); }
}

export const store = new Store();
