// The first page: what runs and ran, what can be run, and the way to a job's tape.

import { api } from "./api.js";
import { fill, h, patchList, setStatus, statusPill, TERMINAL, text, time, painter } from "./dom.js";
import { ago, duration, plural, shortId, when } from "./format.js";
import { executionLink, problem, runGraph } from "./rundialog.js";
import { socket } from "./socket.js";

const SHOWN = 100;
const REFRESH_LIVE = 15_000;
const REFRESH_BLIND = 3_000;
const MOST_SUBSCRIPTIONS = 100;

export function home(app) {
  const view = new Home(app);
  view.start();
  return view;
}

class Home {
  constructor(app) {
    this.app = app;
    this.executions = new Map(); // id -> execution, newest first
    this.graphs = new Map();
    this.subscriptions = new Map(); // graph id -> subscription
    this.abort = new AbortController();
    this.paint = painter(() => this.draw());
    this.loaded = false;

    this.rows = h("tbody");
    this.table = h("table", { class: "executions", hidden: true },
      h("caption", { class: "visually-hidden" }, "Executions, newest first"),
      h("thead", {}, h("tr", {}, ["Status", "Graph", "Started", "Took", "Nodes"].map((name) => h("th", { scope: "col" }, name)))),
      this.rows);
    this.note = h("p", { class: "empty" }, "Loading…");
    this.summary = h("p", { class: "muted", role: "status" });
    this.graphList = h("ul", { class: "cards" });
    this.graphNote = h("p", { class: "empty", hidden: true }, "No graphs yet. Import one: ", h("code", {}, "livetape graphs import FILE"));
    this.trouble = h("div", { class: "trouble", role: "alert", hidden: true });
    const jobInput = h("input", { type: "text", name: "job", id: "job-id", required: true, autocomplete: "off", spellcheck: "false", placeholder: "job id" });
    const jobForm = h("form", { class: "inline" }, h("label", { for: "job-id", class: "visually-hidden" }, "Job id"), jobInput, h("button", { type: "submit" }, "Watch"));
    jobForm.addEventListener("submit", (event) => {
      event.preventDefault();
      const id = jobInput.value.trim();
      if (id) location.hash = `#/jobs/${encodeURIComponent(id)}`;
    });
    this.element = h("div", { class: "page home" },
      this.trouble,
      h("section", { class: "panel", "aria-labelledby": "executions-title" },
        h("div", { class: "panel-head" }, h("h1", { id: "executions-title", tabindex: "-1" }, "Executions"), this.summary),
        this.note, h("div", { class: "scroll-x" }, this.table)),
      h("div", { class: "side" },
        h("section", { class: "panel", "aria-labelledby": "graphs-title" },
          h("div", { class: "panel-head" }, h("h2", { id: "graphs-title" }, "Graphs")), this.graphNote, this.graphList),
        h("section", { class: "panel", "aria-labelledby": "jobs-title" },
          h("div", { class: "panel-head" }, h("h2", { id: "jobs-title" }, "Job tape")),
          h("p", { class: "muted" }, "Watch the events of a background job, from its first."), jobForm)));
  }

  start() {
    this.refresh();
    // Times in words and running durations move on by themselves.
    this.ticker = setInterval(() => this.paint(), 1_000);
  }

  destroy() {
    this.abort.abort();
    clearTimeout(this.timer);
    clearInterval(this.ticker);
    for (const subscription of this.subscriptions.values()) subscription.close();
  }

  async refresh() {
    clearTimeout(this.timer);
    try {
      const { signal } = this.abort;
      const [graphs, executions] = await Promise.all([api.graphs({ signal }), api.executions({ signal })]);
      this.takeGraphs(graphs);
      this.takeExecutions(Array.isArray(executions) ? executions : executions.executions ?? []);
      this.loaded = true;
      this.trouble.hidden = true;
      this.paint();
    } catch (error) {
      if (error.name === "AbortError") return;
      if (error.unauthorized) { this.app.signIn(error.message); return; }
      fill(this.trouble, problem(error));
      this.trouble.hidden = false;
    }
    if (this.abort.signal.aborted) return;
    const live = socket.summary.state === "live" && this.graphs.size <= MOST_SUBSCRIPTIONS;
    this.timer = setTimeout(() => this.refresh(), document.hidden ? 60_000 : live ? REFRESH_LIVE : REFRESH_BLIND);
  }

  takeGraphs(list) {
    this.graphs = new Map(list.map((graph) => [graph.id, graph]));
    for (const id of this.graphs.keys()) {
      if (this.subscriptions.has(id) || this.subscriptions.size >= MOST_SUBSCRIPTIONS) continue;
      let before = false;
      this.subscriptions.set(id, socket.subscribe({
        method: "subscribe_graph_executions",
        data: { graph_id: id },
        since: "latest",
        onEvent: (message) => {
          if (message.method !== "graph_execution_event") return;
          this.takeExecution(message.data);
          this.paint();
        },
        // After an outage the list is asked for again: what changed meanwhile is in it.
        onCaughtUp: () => {
          if (before) this.refreshSoon();
          before = true;
        },
      }));
    }
  }

  refreshSoon() {
    clearTimeout(this.timer);
    this.timer = setTimeout(() => this.refresh(), 200);
  }

  takeExecutions(list) {
    const seen = new Map();
    for (const execution of list) seen.set(execution.id, this.newer(this.executions.get(execution.id), execution));
    // What the socket told of after this list was made stays on top.
    const fresh = [...this.executions.entries()].filter(([id, one]) => !seen.has(id) && one.pushed > Date.now() - 30_000);
    this.executions = new Map([...fresh, ...seen]);
  }

  /** A terminal status never changes: a list that was made earlier cannot take it back. */
  newer(known, told) {
    return known && TERMINAL.has(known.status) && !TERMINAL.has(told.status) ? known : told;
  }

  takeExecution(data) {
    const known = this.executions.get(data.id);
    const next = { ...this.newer(known, data), pushed: Date.now() };
    if (known) this.executions.set(data.id, next);
    else this.executions = new Map([[data.id, next], ...this.executions]);
  }

  draw() {
    if (!this.loaded) return;
    const all = [...this.executions.values()];
    const shown = all.slice(0, SHOWN);
    this.table.hidden = shown.length === 0;
    this.note.hidden = shown.length > 0;
    if (!shown.length) fill(this.note, "Nothing has run yet. Press Run beside a graph, or type: ", h("code", {}, "livetape run GRAPH --watch"));
    const running = all.filter((one) => !TERMINAL.has(one.status)).length;
    const known = all.length > SHOWN ? `the newest ${SHOWN}` : all.length ? plural(all.length, "execution") : "";
    text(this.summary, running ? `${running} running · ${known}` : known);
    const now = Date.now();
    patchList(this.rows, shown, (one) => one.id, (one) => this.makeRow(one), (row, one) => this.patchRow(row, one, now));
    const graphs = [...this.graphs.values()].filter((graph) => graph.is_active !== false);
    this.graphNote.hidden = graphs.length > 0;
    patchList(this.graphList, graphs, (graph) => graph.id, (graph) => this.makeGraph(graph), (entry, graph) => {
      text(entry.name, graph.name);
      text(entry.description, graph.description ?? "");
      entry.description.hidden = !graph.description;
    });
  }

  makeRow(one) {
    const status = statusPill(one.status);
    const link = h("a", { href: executionLink(one) });
    const id = h("span", { class: "id", title: one.id }, shortId(one.id));
    const started = time(one.started_at, "");
    const took = h("td", { class: "figure" });
    const nodes = h("td", { class: "figure" });
    const element = h("tr", { dataset: { execution: one.id } },
      h("td", {}, status), h("td", {}, h("div", { class: "name-cell" }, link, id)), h("td", {}, started), took, nodes);
    // The whole row leads to the execution; the link is what keyboards and screen readers use.
    element.addEventListener("click", (event) => {
      if (!event.target.closest("a") && !getSelection()?.toString()) location.hash = executionLink(one);
    });
    return { element, status, link, started, took, nodes };
  }

  patchRow(row, one, now) {
    setStatus(row.status, one.status);
    text(row.link, this.graphs.get(one.graph_id)?.name ?? `graph ${shortId(one.graph_id)}`);
    if (one.started_at && row.started.dateTime !== one.started_at) {
      row.started.dateTime = one.started_at;
      row.started.title = new Date(one.started_at).toLocaleString(undefined, { dateStyle: "medium", timeStyle: "long" });
    }
    text(row.started, one.started_at ? ago(one.started_at, now) : "not yet");
    const from = when(one.started_at);
    const to = when(one.ended_at) ?? (TERMINAL.has(one.status) ? null : now);
    text(row.took, from !== null && to !== null ? duration(to - from) : "–");
    // Counted at the end; until then nothing is known here, which is not 0.
    const nodes = one.stats?.node_exec_count;
    text(row.nodes, nodes || (TERMINAL.has(one.status) && nodes === 0) ? nodes : "–");
  }

  makeGraph(graph) {
    const name = h("h3");
    const description = h("p", { class: "muted" });
    const trouble = h("div", { class: "trouble", role: "alert", hidden: true });
    const run = h("button", { type: "button", class: "primary", "aria-label": `Run ${graph.name}` }, "Run");
    run.addEventListener("click", async () => {
      run.disabled = true;
      trouble.hidden = true;
      try {
        await runGraph(graph.id, { onUnauthorized: () => this.app.signIn() });
      } catch (error) {
        if (error.unauthorized) { this.app.signIn(error.message); return; }
        fill(trouble, problem(error));
        trouble.hidden = false;
      } finally {
        run.disabled = false;
      }
    });
    const element = h("li", { class: "card", dataset: { graph: graph.id } }, h("div", { class: "card-line" }, h("div", {}, name, description), run), trouble);
    return { element, name, description };
  }
}
