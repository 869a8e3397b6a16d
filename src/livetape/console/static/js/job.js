// The tape of one background job, live from its first event.

import { fill, h, painter, setStatus, statusPill, text } from "./dom.js";
import { Announcer, EventList } from "./eventlist.js";
import { count, duration, plural, preview } from "./format.js";
import { socket } from "./socket.js";
import { fromPush, Memory } from "./tape.js";

export function jobs() {
  const input = h("input", { type: "text", id: "job-id", required: true, autocomplete: "off", spellcheck: "false" });
  const form = h("form", { class: "inline" }, input, h("button", { type: "submit", class: "primary" }, "Watch"));
  form.addEventListener("submit", (event) => {
    event.preventDefault();
    const id = input.value.trim();
    if (id) location.hash = `#/jobs/${encodeURIComponent(id)}`;
  });
  const element = h("div", { class: "page narrow" },
    h("section", { class: "panel" },
      h("div", { class: "panel-head" }, h("h1", { tabindex: "-1" }, "Job tape")),
      h("p", { class: "muted" }, "Any script can put its progress on a tape. Watch it here, from its first event."),
      h("label", { for: "job-id" }, "Job id"), form,
      h("p", { class: "hint" }, "To try it: ", h("code", {}, `livetape publish my-job task_progress --data '{"percent": 40}'`))));
  return { element, destroy() {} };
}

const STATUS = {
  task_started: "RUNNING", task_progress: "RUNNING", task_retried: "QUEUED",
  task_completed: "COMPLETED", task_failed: "FAILED", task_revoked: "TERMINATED",
};

export function job(app, jobId) {
  const view = new JobView(app, jobId);
  view.start();
  return view;
}

class JobView {
  constructor(app, jobId) {
    this.jobId = jobId;
    this.memory = new Memory();
    this.announcer = new Announcer();
    this.jobStatus = null;
    this.began = null;
    this.latest = null;
    this.paint = painter(() => this.draw());
    app.title(`job ${jobId}`);
    this.status = statusPill(null);
    this.status.classList.add("big");
    this.summary = h("p", { class: "muted" });
    this.trouble = h("div", { class: "trouble", role: "alert", hidden: true });
    this.progress = h("progress", { max: "100", hidden: true, "aria-label": "Progress" });
    this.list = new EventList({
      label: "Events of this job",
      describe: (item) => this.describe(item),
      json: (item) => item.raw,
      empty: "No events yet. They appear here as they are published.",
    });
    this.element = h("div", { class: "page execution job", dataset: { job: jobId } },
      h("header", { class: "head" },
        h("div", { class: "head-line" }, h("div", { class: "head-title" }, h("h1", { tabindex: "-1" }, jobId), h("span", { class: "id" }, "job"))),
        h("div", { class: "head-state" }, this.status, this.progress, this.summary),
        this.trouble),
      h("section", { class: "panel tape", "aria-labelledby": "tape-title" },
        h("div", { class: "panel-head" }, h("h2", { id: "tape-title" }, "Tape"), this.list.toggle), this.list.element));
  }

  start() {
    this.subscription = socket.subscribe({
      method: "subscribe_job",
      data: { job_id: this.jobId },
      since: "earliest",
      dense: true,
      onEvent: (message, size, live) => this.take(message, size, live),
      onMissing: (from, to) => this.noted(`Events ${count(from)}–${count(to)} are not on the tape.`),
      onGap: () => this.noted("Gap: the server cannot give some events."),
      onEpoch: () => this.noted("A new tape begins here: the server has another one than before."),
      onLost: (reply, since) => this.noted(since === "earliest"
        ? "The server keeps no history of this job: only what comes now is shown."
        : "The tape could not be continued where it stopped: it is read from its first event again."),
      onError: (words) => {
        fill(this.trouble, h("p", {}, words));
        this.trouble.hidden = false;
      },
    });
    this.paint();
  }

  destroy() {
    this.gone = true;
    this.subscription?.close();
    this.list.destroy();
    this.announcer.destroy();
  }

  noted(words) {
    this.memory.add({ kind: "note", text: words, size: 100, offset: null, at: null });
    this.announcer.say(words);
    this.paint();
  }

  take(message, size, live) {
    const item = fromPush(message, size, live, this.memory.items.at(-1)?.at);
    this.memory.add(item);
    const type = item.data?.event_type ?? "unknown";
    this.began ??= item.at;
    this.latest = item;
    if (STATUS[type]) this.jobStatus = STATUS[type];
    else this.jobStatus ??= "RUNNING";
    if (live) this.announcer.event(type === "task_failed");
    if (live && type === "task_failed") this.announcer.alert("The job failed.");
    if (live && type === "task_revoked") this.announcer.alert("The job was revoked.");
    this.paint();
  }

  describe(item) {
    const type = item.data?.event_type ?? item.type;
    return {
      number: item.offset,
      kind: STATUS[type]?.toLowerCase() ?? "job",
      label: type,
      summary: item.data?.data === undefined || item.data?.data === null ? "" : preview(item.data.data),
      time: !item.timed || this.began === null ? "" : `+${duration(item.at - this.began)}`,
      title: item.timed ? new Date(item.at).toISOString() : null,
    };
  }

  draw() {
    if (this.gone) return;
    setStatus(this.status, this.jobStatus);
    text(this.summary, this.memory.events ? plural(this.memory.events, "event") : "waiting for the first event");
    const data = this.latest?.data?.data;
    const percent = Number(data?.percent ?? data?.progress ?? NaN);
    this.progress.hidden = !Number.isFinite(percent);
    if (Number.isFinite(percent)) this.progress.value = Math.min(100, Math.max(0, percent <= 1 && !Number.isInteger(percent) ? percent * 100 : percent));
    this.list.update(this.memory.items.slice(), this.memory.first);
  }
}
