// What the console knows: loaded once, then kept current by the stream, or fixed at a past sequence.

export const PHASES = ["free", "allocated", "draining", "quarantined"];
const CODE = { f: 0, a: 1, d: 2, q: 3 };
const FEED = 80;

class Store extends EventTarget {
  at = null; // the sequence shown; null is the present
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
    return this.live && node.applied > 0 && node.applied < this.settled;
  }

  get live() { return this.at === null; }

  suffix(join = "?") { return this.live ? "" : `${join}at=${this.at}`; }

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
      const before = this.live ? "" : `&before=${this.at + 1}`;
      const [overview, space, nodes, events] = await Promise.all([
        this.get(`overview${at}`, options),
        this.get(`space${at}`, options),
        brief ? null : this.get(`nodes?limit=20000${this.suffix("&")}`, options),
        brief ? null : this.get(`events?limit=${FEED}${before}`, options),
      ]);
      if (control.signal.aborted) return;
      this.overview = overview;
      this.head = overview.position.head;
      if (this.heads.at(-1)[1] !== this.head) this.heads.push([overview.position.at ? Date.parse(overview.position.at) : 0, this.head]);
      this.space = unpack(space);
      if (nodes) this.nodes = new Map(nodes.nodes.map((node) => [node.name, node]));
      if (events) this.events = events.events;
      if (this.live && !brief) this.convergence = await this.get("convergence?limit=24", options);
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

  // Go to a sequence (null: the present). While a slider moves, only the picture follows.
  async travel(at, { brief = false } = {}) {
    const target = at === null || at >= this.head ? null : Math.max(0, at);
    if (target === this.at && !brief && !this.partial) return;
    this.at = target;
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
    this.convergence = frame.convergence;
    if (!this.live || !this.ready) { if (grown) this.changed("head"); return; }
    if (frame.resync) { this.load(); return; }
    const overview = this.overview;
    overview.position = { ...overview.position, sequence: frame.head, head: frame.head, at: frame.at || overview.position.at };
    overview.agents_behind = frame.agents_behind;
    overview.watermark = frame.watermark;
    const parts = ["convergence"];
    for (const [name, state, applied] of frame.agents) {
      const node = this.nodes.get(name);
      if (node) Object.assign(node, { state, applied, age_s: 0, attested: true });
    }
    if (frame.agents.length) parts.push("agents");
    if (frame.pool) {
      overview.pool = frame.pool;
      overview.conditions = frame.conditions ?? overview.conditions;
      for (const [index, letter, node, epoch] of frame.ranges) put(this.space, index, CODE[letter], node, epoch);
      this.space.cursor = frame.pool.cursor;
      for (const name of frame.gone) this.nodes.delete(name);
      for (const node of frame.nodes) this.nodes.set(node.name, node);
      const known = this.events[0]?.sequence ?? 0;
      const fresh = frame.events.filter((event) => event.sequence > known);
      for (const event of fresh) event.fresh = true;
      this.events = [...fresh, ...this.events].slice(0, FEED);
      this.count();
      parts.push("overlay", "events");
      if (frame.clb_changed) this.load();
    }
    if (grown) parts.push("head");
    this.changed(...parts);
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
