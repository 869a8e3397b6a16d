// What a page knows of one tape: the newest events in bounded memory, and the state that they add up to.

import { when } from "./format.js";
import { TERMINAL } from "./dom.js";

const MOST_EVENTS = 5_000;
const MOST_BYTES = 64 * 1024 * 1024;

/**
 * Events in order, at most 5,000 and 64 MiB of them. `first` is the running index of the oldest one kept, so that an
 * index names the same event for ever. Notes (what is missing) stand between the events.
 */
export class Memory {
  constructor() {
    this.items = [];
    this.first = 0;
    this.bytes = 0;
    this.events = 0; // ever taken, notes left out
  }

  add(item) {
    this.items.push(item);
    this.bytes += item.size ?? 0;
    if (item.kind !== "note") this.events += 1;
    let drop = Math.max(0, this.items.length - MOST_EVENTS);
    let bytes = this.bytes;
    for (let i = 0; i < drop; i += 1) bytes -= this.items[i].size ?? 0;
    while (bytes > MOST_BYTES && drop < this.items.length - 1) bytes -= this.items[drop++].size ?? 0;
    // In one go for many: cutting off the front of an array costs its length.
    if (drop && (drop >= 64 || this.items.length > MOST_EVENTS + 64 || this.bytes > MOST_BYTES + (1 << 20))) {
      this.items.splice(0, drop);
      this.first += drop;
      this.bytes = bytes;
    }
  }
}

const KINDS = {
  graph_execution_event: "graph",
  node_execution_event: "node",
  node_output_event: "output",
  job_event: "job",
};

/** A push as an item of the memory. `live` tells whether it came as it happened. */
export function fromPush(message, size, live, previousTime) {
  const kind = KINDS[message.method] ?? "other";
  const data = message.data ?? (message.error ? { error: message.error, code: message.code } : {});
  const own = eventTime(kind, data);
  return {
    kind, data, size,
    type: data.event_type ?? message.method,
    offset: Number.isInteger(message.offset) ? message.offset : null,
    epoch: message.epoch ?? null,
    final: message.final === true,
    truncated: message.truncated === true,
    // Outputs carry no time of their own, and none is shown; for a replay it is about now when they are seen live.
    timed: own !== null,
    at: own ?? (live ? Date.now() : previousTime ?? null),
    raw: message,
  };
}

function eventTime(kind, data) {
  switch (kind) {
    case "graph": return when(data.ended_at) ?? (data.status === "RUNNING" ? when(data.started_at) : null);
    case "node": return when(data.end_time) ?? when(data.start_time) ?? when(data.queue_time) ?? when(data.add_time);
    case "job": return when(data.timestamp);
    default: return null;
  }
}

const GRAPH_FIELDS = [
  "id", "graph_id", "graph_version", "status", "status_reason", "started_at", "ended_at", "stats", "inputs", "outputs",
  "is_dry_run",
];

/** One node of the graph over all its runs. */
class NodeState {
  constructor(id) {
    this.id = id;
    this.runs = new Map(); // node_exec_id -> {status, start, end, counts}
    this.byStatus = {};
    this.spent = 0; // ms of ended runs
    this.running = new Map(); // node_exec_id -> start
    this.from = null;
    this.to = null;
    this.outputs = 0;
    this.taken = []; // {name, value}: the newest of what completed runs took on these pins (OUTPUT nodes)
    this.pins = new Map(); // pin -> {value, count}: the newest value and how many there were
    this.reason = null;
    this.latest = null;
    this.blockId = null;
  }

  run(id) {
    let run = this.runs.get(id);
    if (!run) {
      run = { status: null, start: null, end: null, counts: {} };
      this.runs.set(id, run);
    }
    return run;
  }

  give(run, pin, index, value) {
    const known = run.counts[pin] ?? 0;
    if (index < known) return;
    run.counts[pin] = index + 1;
    const more = index + 1 - known;
    this.outputs += more;
    const entry = this.pins.get(pin);
    this.pins.set(pin, { value, count: (entry?.count ?? 0) + more });
  }

  get status() {
    const by = this.byStatus;
    for (const status of ["RUNNING", "FAILED", "REVIEW"]) if (by[status]) return status;
    if (by.QUEUED) return "QUEUED";
    return this.latest;
  }

  busy(now) {
    if (!this.spent && !this.running.size && this.from === null) return null;
    let total = this.spent;
    for (const start of this.running.values()) total += Math.max(0, now - start);
    return total;
  }
}

/** The state of an execution at a position: the fold of its events, or a snapshot of the API and what followed it. */
export class ExecutionState {
  constructor() {
    this.epoch = null;
    this.offset = 0;
    this.exec = null;
    this.nodes = new Map();
    this.nodeRuns = 0;
    this.failures = 0;
    this.time = null;
  }

  static fromSnapshot(snapshot) {
    const state = new ExecutionState();
    state.graph(snapshot);
    for (const run of snapshot.node_executions ?? []) state.node(run);
    state.epoch = snapshot.stream?.epoch ?? null;
    state.offset = snapshot.stream?.offset ?? 0;
    return state;
  }

  get terminal() { return TERMINAL.has(this.exec?.status); }

  /** Whether the event is part of this state already (a snapshot may be ahead of the tape). */
  has(item) {
    return item.offset !== null && item.epoch === this.epoch && item.offset <= this.offset;
  }

  apply(item) {
    if (item.kind === "graph") this.graph(item.data);
    else if (item.kind === "node") this.node(item.data);
    else if (item.kind === "output") this.output(item.data);
    if (item.offset !== null) {
      this.epoch = item.epoch;
      this.offset = item.offset;
    }
    if (item.at !== null && item.at !== undefined) this.time = item.at;
  }

  graph(data) {
    this.exec ??= {};
    for (const field of GRAPH_FIELDS) if (data[field] !== undefined) this.exec[field] = data[field];
  }

  nodeState(id) {
    let node = this.nodes.get(id);
    if (!node) {
      node = new NodeState(id);
      this.nodes.set(id, node);
    }
    return node;
  }

  node(data) {
    const node = this.nodeState(data.node_id);
    const known = node.runs.size;
    const run = node.run(data.node_exec_id);
    if (node.runs.size > known) this.nodeRuns += 1;
    node.blockId ??= data.block_id;
    if (run.status !== data.status) {
      if (run.status) node.byStatus[run.status] -= 1;
      node.byStatus[data.status] = (node.byStatus[data.status] ?? 0) + 1;
      if (data.status === "FAILED") this.failures += 1;
      const taken = data.status === "COMPLETED" ? data.input_data?.value : null;
      if (Array.isArray(taken)) {
        node.taken.push({ name: data.input_data.name?.at?.(-1), value: taken.at(-1) });
        if (node.taken.length > 50) node.taken.shift();
      }
      run.status = data.status;
    }
    node.latest = data.status;
    if (data.status === "FAILED" || data.status_reason) node.reason = data.status_reason ?? node.reason;
    const start = when(data.start_time);
    const end = when(data.end_time);
    if (start !== null) {
      run.start = start;
      node.from = node.from === null ? start : Math.min(node.from, start);
    }
    if (end !== null && run.end === null) {
      run.end = end;
      node.spent += Math.max(0, end - (run.start ?? end));
      node.to = node.to === null ? end : Math.max(node.to, end);
    }
    if (data.status === "RUNNING" && run.start !== null) node.running.set(data.node_exec_id, run.start);
    else node.running.delete(data.node_exec_id);
    for (const [pin, values] of Object.entries(data.output_data ?? {})) {
      if (Array.isArray(values) && values.length) node.give(run, pin, values.length - 1, values.at(-1));
    }
  }

  output(data) {
    const node = this.nodeState(data.node_id);
    const before = node.runs.size;
    const run = node.run(data.node_exec_id);
    if (node.runs.size > before) this.nodeRuns += 1;
    // `index` counts all outputs of this run, and a snapshot may have told of this one; per pin they are counted here.
    let known = 0;
    for (const pin in run.counts) known += run.counts[pin];
    if (data.index < known) return;
    node.give(run, data.name, run.counts[data.name] ?? 0, data.value);
  }
}
