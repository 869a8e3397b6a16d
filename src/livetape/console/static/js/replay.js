// Playing the events in memory again, at the speed in which they happened or another.

import { fill, h, icon } from "./dom.js";
import { count } from "./format.js";

const SPEEDS = [0.1, 1, 10, 100];
// Nobody waits for a pause of an hour: silence is cut to this, before the speed.
const LONGEST_PAUSE = 3_000;

/** `onSeek(length)`: show the first `length` items kept, or null for the newest, live. */
export class Replay {
  constructor({ onSeek }) {
    this.onSeek = onSeek;
    this.memory = null;
    this.at = null; // running index after the last shown item, null when live
    this.playing = false;
    this.timer = null;
    this.playButton = h("button", { type: "button", class: "quiet", onclick: () => (this.playing ? this.pause() : this.play()) });
    this.slider = h("input", { type: "range", min: "0", max: "0", value: "0", "aria-label": "Position on the tape" });
    this.slider.addEventListener("input", () => { this.pause(); this.seek(this.memory.first + Number(this.slider.value)); });
    this.place = h("output", { class: "figure" });
    this.speed = h("select", { "aria-label": "Replay speed" }, SPEEDS.map((speed) => h("option", { value: String(speed) }, `${speed}×`)));
    this.speed.value = "1";
    this.speed.addEventListener("change", () => { if (this.playing) { clearTimeout(this.timer); this._schedule(); } });
    this.liveButton = h("button", { type: "button", class: "quiet", hidden: true, onclick: () => this.live() }, "To the end");
    this.element = h("div", { class: "replay", role: "group", "aria-label": "Replay" }, this.playButton, this.slider, this.place, this.speed, this.liveButton);
    this._label();
  }

  destroy() { clearTimeout(this.timer); }

  get active() { return this.at !== null; }

  update(memory) {
    this.memory = memory;
    const length = memory.items.length;
    this.slider.max = String(length);
    if (this.at !== null && this.at < memory.first) this.at = memory.first;
    const shown = this.at === null ? length : this.at - memory.first;
    if (Number(this.slider.value) !== shown) this.slider.value = String(shown);
    const item = shown > 0 ? memory.items[shown - 1] : null;
    const number = item?.offset ?? (shown === 0 ? 0 : "–");
    const last = memory.items.findLast((one) => one.offset !== null && one.offset !== undefined)?.offset ?? length;
    this.place.value = `${typeof number === "number" ? count(number) : number} / ${count(last)}`;
    this.slider.setAttribute("aria-valuetext", `event ${number} of ${last}`);
    this.slider.disabled = length === 0;
    this.playButton.disabled = length === 0;
    this.liveButton.hidden = this.at === null;
  }

  seek(index) {
    const end = this.memory.first + this.memory.items.length;
    this.at = Math.min(end, Math.max(this.memory.first, index));
    this.onSeek(this.at - this.memory.first);
  }

  play() {
    if (!this.memory?.items.length) return;
    const end = this.memory.first + this.memory.items.length;
    if (this.at === null || this.at >= end) this.seek(this.memory.first);
    this.playing = true;
    this._label();
    this._schedule();
  }

  pause() {
    if (!this.playing) return;
    this.playing = false;
    clearTimeout(this.timer);
    this._label();
  }

  live() {
    this.pause();
    this.at = null;
    this.onSeek(null);
  }

  /** Shows the next event when it is due, and with it all that are due within the same frame. */
  _schedule() {
    const { items, first } = this.memory;
    const next = this.at - first;
    if (next >= items.length) { this.pause(); return; }
    const speed = Number(this.speed.value);
    const gap = (times, at) => (at <= 0 ? 0 : Math.min(LONGEST_PAUSE, times[at] - times[at - 1]) / speed);
    this.timer = setTimeout(() => {
      const { items: now, first: start } = this.memory;
      const times = this._times();
      let to = Math.max(0, this.at - start) + 1;
      let within = 0;
      while (to < now.length && (within += gap(times, to)) < 16) to += 1;
      this.seek(start + to);
      if (this.playing) this._schedule();
    }, Math.max(gap(this._times(), next), 16));
  }

  /** When each item kept happened: those that do not say it lie evenly between those that do. Never going back. */
  _times() {
    const { items, first } = this.memory;
    const key = `${first} ${items.length}`;
    if (this.timesOf === key) return this.times;
    const times = new Float64Array(items.length);
    let last = -1;
    let latest = items.find((item) => item.timed)?.at ?? 0;
    for (let i = 0; i <= items.length; i += 1) {
      const end = i === items.length;
      if (!end && !items[i].timed) continue;
      const until = end ? Math.max(latest, items.at(-1)?.at ?? latest) : Math.max(latest, items[i].at);
      const step = (until - latest) / (i - last);
      for (let k = last + 1; k < i; k += 1) times[k] = latest + step * (k - last);
      if (!end) times[i] = until;
      latest = until;
      last = i;
    }
    this.timesOf = key;
    this.times = times;
    return times;
  }

  _label() {
    fill(this.playButton, icon(this.playing ? "pause" : "play"), this.playing ? "Pause" : "Replay");
  }
}
