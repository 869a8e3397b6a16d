// One execution, live: the state of its nodes, its tape from the first event, its inputs and outputs.

import { api, blocks } from "./api.js";
import { fill, h, icon, painter, patchList, setStatus, statusPill, TERMINAL, text } from "./dom.js";
import { Announcer, EventList } from "./eventlist.js";
import { blockTitle, count, duration, plural, preview, pretty, shortId, when } from "./format.js";
import { Replay } from "./replay.js";
import { problem, runGraph } from "./rundialog.js";
import { socket } from "./socket.js";
import { ExecutionState, fromPush, Memory } from "./tape.js";

const SHOWN_VALUES = 50;
const SHOWN_PINS = 4;

const REASONS = {
  block_error: "a block failed",
  cancelled_by_user: "stopped by a user",
  insufficient_credits: "not enough credits",
  poison: "it was given up after several failed recoveries",
  timeout: "its time was over",
  waiting: "waiting",
  worker_lost: "its worker was lost",
};

export function execution(app, graphId, executionId) {
  const view = new ExecutionView(app, graphId, executionId);
  view.start();
  return view;
}

class ExecutionView {
  constructor(app, graphId, executionId) {
    this.app = app;
    this.graphId = graphId;
    this.executionId = executionId;
    this.abort = new AbortController();
    this.memory = new Memory();
    this.state = new ExecutionState(); // newest
    this.shown = null; // {state, length}: what a replay shows
    this.graph = null;
    this.blocks = new Map();
    this.announcer = new Announcer();
    this.snapshotTries = 0;
    this.caughtUp = false;
    this.paint = painter(() => this.draw());
    this.build();
  }

  build() {
    this.title = h("h1", { tabindex: "-1" }, "Execution");
    this.status = statusPill(null);
    this.status.classList.add("big");
    this.reason = h("p", { class: "reason", hidden: true });
    this.stopButton = h("button", { type: "button", hidden: true, onclick: () => this.stop() }, icon("stop"), "Stop");
    this.againButton = h("button", { type: "button", hidden: true, onclick: () => this.again() }, icon("play"), "Run again");
    this.facts = {};
    const fact = (key, label) => {
      this.facts[key] = h("dd", { class: "figure" }, "–");
      return h("div", {}, h("dt", {}, label), this.facts[key]);
    };
    this.factList = h("dl", { class: "facts" },
      fact("started", "Started"), fact("took", "Took"), fact("runs", "Node runs"), fact("errors", "Errors"),
      fact("cost", "Cost"), fact("events", "Events"));
    this.trouble = h("div", { class: "trouble", role: "alert", hidden: true });
    this.past = h("p", { class: "past", hidden: true });

    this.nodeRows = h("tbody");
    this.nodesEmpty = h("p", { class: "empty" }, "Loading…");
    const nodes = h("section", { class: "panel nodes", "aria-labelledby": "nodes-title" },
      h("div", { class: "panel-head" }, h("h2", { id: "nodes-title" }, "Nodes"), (this.nodeSummary = h("p", { class: "muted" }))),
      this.nodesEmpty,
      h("div", { class: "scroll-x" },
        h("table", {},
          h("caption", { class: "visually-hidden" }, "Nodes with state, runs, time and newest outputs"),
          h("thead", {}, h("tr", {}, h("th", { scope: "col" }, "Node"), h("th", { scope: "col" }, "State"),
            h("th", { scope: "col", class: "figure" }, "Runs"), h("th", { scope: "col", class: "figure" }, "Time"),
            h("th", { scope: "col" }, "Newest outputs"))),
          this.nodeRows)));

    this.list = new EventList({
      label: "Events of this execution",
      describe: (item) => this.describe(item),
      json: (item) => item.raw,
      empty: "No events yet.",
    });
    this.replay = new Replay({ onSeek: (length) => this.seek(length) });
    const tape = h("section", { class: "panel tape", "aria-labelledby": "tape-title" },
      h("div", { class: "panel-head" }, h("h2", { id: "tape-title" }, "Tape"), this.list.toggle),
      this.replay.element, this.list.element);

    this.inputs = h("div", { class: "values" });
    this.outputs = h("div", { class: "values" });
    const inputs = h("section", { class: "panel", "aria-labelledby": "inputs-title" }, h("div", { class: "panel-head" }, h("h2", { id: "inputs-title" }, "Inputs")), this.inputs);
    const outputs = h("section", { class: "panel", "aria-labelledby": "outputs-title" }, h("div", { class: "panel-head" }, h("h2", { id: "outputs-title" }, "Outputs")), this.outputs);

    this.element = h("div", { class: "page execution", dataset: { execution: this.executionId } },
      h("header", { class: "head" },
        h("div", { class: "head-line" },
          h("div", { class: "head-title" }, this.title, h("span", { class: "id", title: this.executionId }, this.executionId)),
          h("div", { class: "actions" }, this.stopButton, this.againButton)),
        h("div", { class: "head-state" }, this.status, this.reason),
        this.factList, this.past, this.trouble),
      h("div", { class: "columns" }, h("div", { class: "column" }, nodes, outputs, inputs), tape));
  }

  start() {
    this.load();
    this.ticker = setInterval(() => { if (!this.state.terminal) this.paint(); }, 250);
  }

  destroy() {
    this.abort.abort();
    clearInterval(this.ticker);
    clearTimeout(this.retry);
    this.subscription?.close();
    this.list.destroy();
    this.replay.destroy();
    this.announcer.destroy();
  }

  // --- what is loaded -----------------------------------------------------------------------------------------------

  async load() {
    clearTimeout(this.retry);
    const { signal } = this.abort;
    try {
      const snapshot = await api.execution(this.graphId, this.executionId, { signal });
      this.snapshotTries = 0;
      this.trouble.hidden = true;
      this.rebase(snapshot);
      this.subscribe();
      this.loadNames(snapshot, signal);
    } catch (error) {
      if (error.name === "AbortError") return;
      if (error.unauthorized) { this.app.signIn(error.message); return; }
      const gone = error.status === 404;
      fill(this.trouble, gone
        ? [h("p", {}, "There is no such execution, or it is not yours."), h("p", {}, h("a", { href: "#/" }, "All executions"))]
        : problem(error));
      this.trouble.hidden = false;
      if (gone && !this.subscription) { text(this.nodesEmpty, ""); return; }
      this.snapshotTries += 1;
      this.retry = setTimeout(() => this.load(), Math.min(30_000, 500 * 2 ** this.snapshotTries) * (0.5 + Math.random() / 2));
    }
  }

  async loadNames(snapshot, signal) {
    if (this.graph) return;
    try {
      const [graph, known] = await Promise.all([api.graph(this.graphId, snapshot.graph_version, { signal }), blocks()]);
      this.graph = graph;
      this.blocks = known;
      this.named = new Map((graph.nodes ?? []).map((node) => [node.id, node]));
      this.relabel = true;
      this.paint();
    } catch (error) {
      if (error.name === "AbortError") return;
      if (error.unauthorized) { this.app.signIn(error.message); return; }
      // The page works with ids; nothing is hidden by this.
      text(this.nodeSummary, "names are not available");
      this.graph = { name: `graph ${shortId(this.graphId)}`, nodes: [] };
      this.paint();
    }
  }

  /** The snapshot is the truth up to its position; events after it are put on top. */
  rebase(snapshot) {
    this.state = ExecutionState.fromSnapshot(snapshot);
    for (const item of this.memory.items) if (item.kind !== "note" && !this.state.has(item)) this.takeLater(item);
    this.paint();
  }

  takeLater(item) {
    // An event without number (from a plain publisher) cannot be placed: only new ones count.
    if (item.offset === null || item.epoch !== this.state.epoch) return;
    this.state.apply(item);
  }

  subscribe() {
    if (this.subscription) return;
    this.subscription = socket.subscribe({
      method: "subscribe_graph_execution",
      data: { graph_exec_id: this.executionId, outputs: "each" },
      since: "earliest",
      dense: true,
      onEvent: (message, size, live) => this.take(message, size, live),
      onCaughtUp: () => { this.caughtUp = true; this.paint(); },
      onMissing: (from, to) => {
        this.noted(from === 1 && this.memory.events === 0
          ? `Events 1–${count(to)} are no longer on the tape; the state shown is complete.`
          : `${from === to ? `Event ${count(from)} is` : `Events ${count(from)}–${count(to)} are`} missing here; the state was read again.`);
        this.load();
      },
      onGap: (message) => {
        const { from, to } = message.data ?? {};
        this.noted(`Gap: the server cannot give ${from && to ? `events ${count(from)}–${count(to)}` : "some events"}; the state was read again.`);
        this.load();
      },
      onEpoch: () => {
        this.noted("A new tape begins here: the server has another one than before.");
        this.load();
      },
      onLost: (reply, since) => {
        if (since === "earliest") {
          this.noted("The server keeps no history of this execution: only what comes now is shown.");
        } else {
          this.noted("The tape could not be continued where it stopped: it is read from its first event again.");
        }
        this.load();
      },
      onError: (words) => {
        fill(this.trouble, h("p", {}, words), h("p", { class: "hint" }, "Reload the page to try again."));
        this.trouble.hidden = false;
      },
    });
  }

  noted(words) {
    this.memory.add({ kind: "note", text: words, size: 100, offset: null, at: this.memory.items.at(-1)?.at ?? null });
    this.announcer.say(words);
    this.paint();
  }

  take(message, size, live) {
    const item = fromPush(message, size, live, this.memory.items.at(-1)?.at);
    const before = this.state.exec?.status;
    this.memory.add(item);
    if (!this.state.has(item)) this.state.apply(item);
    if (live) this.announcer.event(item.kind === "node" && item.data.status === "FAILED");
    const after = this.state.exec?.status;
    if (live && after !== before && TERMINAL.has(after)) {
      if (after === "COMPLETED") this.announcer.say("The execution is completed.");
      else this.announcer.alert(`The execution ended: ${after.toLowerCase()}. ${this.state.exec.status_reason ?? ""}`);
    }
    this.paint();
  }

  // --- what can be done ---------------------------------------------------------------------------------------------

  async stop() {
    this.stopButton.disabled = true;
    fill(this.stopButton, icon("stop"), "Stopping…");
    try {
      await api.stop(this.graphId, this.executionId);
    } catch (error) {
      if (error.unauthorized) { this.app.signIn(error.message); return; }
      fill(this.trouble, problem(error));
      this.trouble.hidden = false;
      this.stopButton.disabled = false;
      fill(this.stopButton, icon("stop"), "Stop");
    }
  }

  async again() {
    this.againButton.disabled = true;
    try {
      await runGraph(this.graphId, {
        version: this.state.exec?.graph_version, prefill: this.state.exec?.inputs ?? {}, ask: true, onUnauthorized: () => this.app.signIn(),
      });
    } catch (error) {
      if (error.unauthorized) { this.app.signIn(error.message); return; }
      fill(this.trouble, problem(error));
      this.trouble.hidden = false;
    } finally {
      this.againButton.disabled = false;
    }
  }

  seek(length) {
    if (length === null) {
      this.shown = null;
      this.list.setFollow(true);
    } else {
      const last = this.shown;
      const index = this.memory.first + length;
      // Forward: go on from what is shown. Back: fold again from the first event kept.
      const onward = last !== null && last.index <= index && last.index >= this.memory.first;
      const state = onward ? last.state : new ExecutionState();
      for (let i = onward ? last.index - this.memory.first : 0; i < length; i += 1) {
        const item = this.memory.items[i];
        if (item.kind !== "note") state.apply(item);
      }
      this.shown = { state, index };
      this.list.setFollow(true);
    }
    this.paint();
  }

  // --- what is seen -------------------------------------------------------------------------------------------------

  /** {name, block}: what its author calls it, or the name of the input or output, or the block's; and the block. */
  nodeTitle(id, blockId) {
    const node = this.named?.get(id);
    const meta = node?.metadata ?? {};
    const given = meta.customized_name || meta.name || meta.title;
    const block = this.blocks.get(node?.block_id ?? blockId);
    const title = block ? blockTitle(block.name) : "";
    if (typeof given === "string" && given) return { name: given, block: title };
    const pin = node?.input_default?.title || node?.input_default?.name;
    if (typeof pin === "string" && pin && /^(Input|Output)$/.test(block?.kind ?? "")) return { name: pin, block: title };
    return { name: title || `node ${shortId(id)}`, block: "" };
  }

  nodeName(id, blockId) {
    return this.nodeTitle(id, blockId).name;
  }

  describe(item) {
    const began = when(this.state.exec?.started_at);
    const told = {
      number: item.offset,
      kind: item.kind,
      time: !item.timed ? "" : began === null ? new Date(item.at).toLocaleTimeString() : `+${duration(item.at - began)}`,
      title: item.timed ? new Date(item.at).toISOString() : null,
    };
    const { data } = item;
    switch (item.kind) {
      case "graph":
        return { ...told, label: "graph", status: statusPill(data.status), summary: reasonText(data) };
      case "node": {
        const outputs = Object.values(data.output_data ?? {}).reduce((sum, values) => sum + (values?.length ?? 0), 0);
        const more = [data.status_reason ? reasonText(data) : "", outputs ? plural(outputs, "output") : "", item.truncated ? "shortened" : ""];
        return {
          ...told, label: "node", status: statusPill(data.status),
          summary: [this.nodeName(data.node_id, data.block_id), ...more.filter(Boolean)].join(" · "),
        };
      }
      case "output":
        return { ...told, label: "output", summary: `${this.nodeName(data.node_id)} · ${data.name} = ${preview(data.value)}` };
      default:
        return { ...told, label: item.type, summary: preview(data) };
    }
  }

  draw() {
    if (this.abort.signal.aborted) return;
    if (this.relabel) {
      // Names have come: rows that were made without them are made again.
      this.relabel = false;
      for (const row of this.list.rows.values()) row.item = null;
    }
    const replaying = this.shown !== null;
    const state = replaying ? this.shown.state : this.state;
    const exec = state.exec ?? {};
    const now = replaying ? state.time ?? Date.now() : Date.now();
    const name = this.graph?.name ?? "Execution";
    text(this.title, name);
    this.app.title(`${exec.status ? `${exec.status.toLowerCase()} – ` : ""}${name}`);
    setStatus(this.status, exec.status ?? null);
    const reason = reasonText(exec);
    text(this.reason, reason);
    this.reason.hidden = !reason;
    this.past.hidden = !replaying;
    if (replaying) text(this.past, `Replay: the state after event ${count(state.offset)}.${this.state.terminal ? "" : " The execution goes on."}`);
    const ended = TERMINAL.has(exec.status);
    const current = this.state.exec;
    const open = Boolean(current) && !TERMINAL.has(current.status);
    this.stopButton.hidden = !open;
    this.againButton.hidden = !current || open;

    const from = when(exec.started_at);
    const to = ended ? when(exec.ended_at) : now;
    text(this.facts.started, from === null ? "not yet" : new Date(from).toLocaleTimeString());
    this.facts.started.title = from === null ? "" : new Date(from).toLocaleString(undefined, { dateStyle: "full", timeStyle: "long" });
    text(this.facts.took, from === null || to === null ? "–" : duration(to - from));
    text(this.facts.runs, count(Math.max(state.nodeRuns, ended ? exec.stats?.node_exec_count ?? 0 : 0)));
    text(this.facts.errors, count(Math.max(state.failures, exec.stats?.node_error_count ?? 0)));
    text(this.facts.cost, exec.stats?.cost ? `${(exec.stats.cost / 100).toFixed(2)}` : "0");
    text(this.facts.events, count(replaying ? state.offset : Math.max(this.state.offset, this.subscription?.position?.offset ?? 0)));
    this.facts.errors.classList.toggle("bad", this.facts.errors.textContent !== "0");

    this.drawNodes(state, exec, from, to ?? now, now);
    const inputs = Object.entries(exec.inputs ?? {}).map(([name, value]) => ({ name, values: [value], total: 1 }));
    this.drawValues(this.inputs, inputs, "This execution has no inputs.");
    this.drawValues(this.outputs, ended ? finalOutputs(exec) : this.outputsSoFar(state), ended ? "Nothing was put out." : "Nothing yet.");

    const { first, items } = this.memory;
    this.list.update(items.slice(0, replaying ? Math.max(0, this.shown.index - first) : undefined), first);
    this.replay.update(this.memory);
  }

  drawNodes(state, exec, from, to, now) {
    const rows = [];
    for (const node of this.graph?.nodes ?? []) rows.push({ id: node.id, blockId: node.block_id });
    for (const [id, node] of state.nodes) if (!this.named?.has(id)) rows.push({ id, blockId: node.blockId });
    this.nodesEmpty.hidden = rows.length > 0;
    if (!rows.length && this.graph) text(this.nodesEmpty, "No node has run yet.");
    const done = rows.filter((row) => state.nodes.get(row.id)?.status === "COMPLETED").length;
    if (rows.length) text(this.nodeSummary, `${count(done)} of ${count(rows.length)} completed`);
    const span = from === null ? 0 : Math.max(1, to - from);
    patchList(this.nodeRows, rows, (row) => row.id, (row) => this.makeNode(row), (entry, row) => {
      const node = state.nodes.get(row.id);
      const title = this.nodeTitle(row.id, row.blockId);
      text(entry.name, title.name);
      text(entry.block, title.block);
      entry.block.hidden = !title.block;
      setStatus(entry.status, node?.status ?? null);
      text(entry.runs, node ? count(node.runs.size) : "0");
      const busy = node?.busy(now) ?? null;
      text(entry.took, busy === null ? "–" : duration(busy));
      this.drawBar(entry, node, from, span, now);
      this.drawPins(entry, node);
    });
  }

  makeNode(row) {
    const name = h("span", { class: "node-name" });
    const block = h("span", { class: "id" });
    const status = statusPill(null);
    const runs = h("td", { class: "figure" });
    const took = h("span");
    const bar = h("span", { class: "bar" });
    const pins = h("div");
    const morePins = h("span", { class: "faint", hidden: true });
    const element = h("tr", { dataset: { node: row.id } },
      h("th", { scope: "row" }, h("div", { class: "name-cell" }, name, block)), h("td", {}, status), runs,
      h("td", { class: "figure took" }, took, h("span", { class: "track", "aria-hidden": "true" }, bar)),
      h("td", { class: "pins" }, pins, morePins));
    return { element, name, block, status, runs, took, bar, pins, morePins };
  }

  /** Where in the time of the execution this node ran. */
  drawBar(entry, node, from, span, now) {
    if (!node || node.from === null || from === null) {
      entry.bar.hidden = true;
      return;
    }
    const until = node.running.size ? now : node.to ?? now;
    const left = Math.min(100, Math.max(0, ((node.from - from) / span) * 100));
    const width = Math.min(100 - left, Math.max(1.5, ((until - node.from) / span) * 100));
    entry.bar.hidden = false;
    entry.bar.dataset.status = node.status ?? "NONE";
    entry.bar.style.left = `${Math.min(left, 98.5)}%`;
    entry.bar.style.width = `${width}%`;
  }

  drawPins(entry, node) {
    const pins = node ? [...node.pins] : [];
    // One line each, so that rows below do not move with every value.
    patchList(entry.pins, pins.slice(0, SHOWN_PINS), ([pin]) => pin, ([pin]) => {
      const value = h("span", { class: "value" });
      const times = h("span", { class: "times" });
      const element = h("div", { class: pin === "error" ? "pin pin-error" : "pin" }, h("span", { class: "pin-name", title: pin }, pin), value, times);
      return { element, value, times, last: Symbol("none") };
    }, (line, [, { value, count: given }]) => {
      if (line.last !== value) {
        line.last = value;
        text(line.value, preview(value, 90));
        line.value.title = preview(value, 600);
      }
      text(line.times, given > 1 ? `×${count(given)}` : "");
    });
    const hidden = pins.length - SHOWN_PINS;
    text(entry.morePins, hidden > 0 ? `and ${plural(hidden, "pin")} more` : "");
    entry.morePins.hidden = hidden <= 0;
  }

  /** What OUTPUT nodes have put out while the execution runs; at its end the execution's own event says it. */
  outputsSoFar(state) {
    const found = new Map();
    for (const node of this.graph?.nodes ?? []) {
      const told = state.nodes.get(node.id);
      if (!told || this.blocks.get(node.block_id)?.kind !== "Output") continue;
      let group = null;
      for (const { name, value } of told.taken) {
        const key = name ?? node.input_default?.name ?? "output";
        group = found.get(key) ?? { name: key, values: [], total: 0 };
        group.values.push(value);
        group.total += 1;
        found.set(key, group);
      }
      // Only the newest values are kept, but all were counted.
      if (group) group.total += Math.max(0, (told.byStatus.COMPLETED ?? 0) - told.taken.length);
    }
    return [...found.values()];
  }

  drawValues(parent, groups, empty) {
    // A frame in which nothing changed leaves the page (and a selection in it) alone.
    const key = groups.length ? groups.map(quickKey).join("\u0001") : empty;
    if (parent._key === key) return;
    parent._key = key;
    if (!groups.length) { fill(parent, h("p", { class: "empty" }, empty)); return; }
    const tops = [...parent.querySelectorAll("pre")].map((pre) => [pre.scrollTop, pre.scrollTop + pre.clientHeight >= pre.scrollHeight - 4]);
    fill(parent, groups.map(({ name, values, total }) => {
      const shown = values.slice(-SHOWN_VALUES);
      return h("div", { class: "value-group" },
        h("h3", {}, name, total > 1 ? h("span", { class: "times" }, ` ×${count(total)}`) : null),
        total > shown.length ? h("p", { class: "faint" }, `the newest ${shown.length} of ${count(total)}`) : null,
        blocksOf(shown).map((words) => h("pre", { class: "value", tabindex: "0" }, words)));
    }));
    // Lists that grow stay at their end, unless somebody scrolled them.
    [...parent.querySelectorAll("pre")].forEach((pre, at) => {
      const [top, end] = tops[at] ?? [0, true];
      pre.scrollTop = end ? pre.scrollHeight : top;
    });
  }
}

/** Texts to show: short values share one, a line each; long ones stand alone. */
function blocksOf(values) {
  const texts = [];
  let lines = [];
  for (const value of values) {
    const words = typeof value === "string" ? clip(value) : pretty(value);
    const line = typeof value === "string" ? words : preview(value, 200);
    if (line.length <= 120 && !line.includes("\n") && !line.endsWith("…")) lines.push(line);
    else {
      if (lines.length) texts.push(lines.join("\n"));
      lines = [];
      texts.push(words);
    }
  }
  if (lines.length) texts.push(lines.join("\n"));
  return texts;
}

function clip(value) {
  return value.length > 20_000 ? `${value.slice(0, 20_000)}\n… ${count(value.length - 20_000)} more characters` : value;
}

/** Enough to see a change without writing megabytes of JSON each time. */
function quickKey({ name, values, total }) {
  return `${name}\u0000${total}\u0000${preview(values.at(-1), 400)}`;
}

function finalOutputs(exec) {
  return Object.entries(exec.outputs ?? {}).map(([name, value]) => {
    const values = Array.isArray(value) ? value : [value];
    return { name, values, total: values.length };
  });
}

function reasonText(data) {
  const reason = data.status_reason;
  const said = reason ? REASONS[reason] ?? (/^[a-z_]+$/.test(reason) ? reason.replaceAll("_", " ") : String(reason)) : "";
  const error = data.stats?.error;
  if (error && said) return `${said}: ${error}`;
  return error || said;
}
