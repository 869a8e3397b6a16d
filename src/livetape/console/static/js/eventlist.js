// A list of events of which only the visible rows are elements. Rows have one height; one of them can be opened. New
// rows never move what is being read: unless "Follow" is on they wait behind a button that counts them.

import { fill, h, icon, text } from "./dom.js";
import { count, plural, pretty } from "./format.js";

const ROW = 30;
const OPEN = 260;
const SPARE = 8;

export class EventList {
  /** `describe(item)` gives {number, kind, label, summary, status, time, title}; `json(item)` what an open row shows. */
  constructor({ label, describe, json, empty }) {
    this.describe = describe;
    this.json = json;
    this.items = [];
    this.first = 0;
    this.rows = new Map();
    this.opened = null; // running index of the open row
    this.openedItem = null;
    this.follow = true;
    this.unseen = 0;
    this.focused = null; // the row that has the focus
    this.current = null; // the row that had it last

    this.list = h("ol", { class: "rows" });
    this.empty = h("p", { class: "empty" }, empty);
    this.view = h("div", { class: "events-view", role: "region", "aria-label": label }, this.empty, this.list);
    this.followBox = h("input", { type: "checkbox" });
    this.followBox.checked = true;
    this.followBox.addEventListener("change", () => this.setFollow(this.followBox.checked));
    this.toggle = h("label", { class: "toggle" }, this.followBox, "Follow");
    this.fresh = h("button", { type: "button", class: "fresh", hidden: true, onclick: () => this.setFollow(true) });
    this.element = h("div", { class: "events" }, this.view, this.fresh);

    this.view.addEventListener("scroll", () => this._scrolled(), { passive: true });
    this.list.addEventListener("keydown", (event) => this._key(event));
    this.list.addEventListener("focusin", (event) => {
      const row = event.target.closest("li");
      this.focused = row ? Number(row.dataset.index) : null;
      this.current = this.focused;
    });
    this.list.addEventListener("focusout", () => { this.focused = null; });
    this.resized = new ResizeObserver(() => this._layout());
    this.resized.observe(this.view);
  }

  destroy() { this.resized.disconnect(); }

  /** Shows these items (an array of their own, which does not grow); `first` is the running index of the first. */
  update(items, first) {
    const before = this.first + this.items.length;
    const dropped = first - this.first;
    this.items = items;
    this.first = first;
    const after = first + items.length;
    if (!this.follow) {
      this.unseen = Math.max(0, this.unseen + after - before);
      // Rows that left the front pull the rest up: move with them.
      if (dropped > 0) this.view.scrollTop -= dropped * ROW;
    }
    this._layout();
  }

  setFollow(on) {
    this.follow = on;
    this.followBox.checked = on;
    if (on) this.unseen = 0;
    this._layout();
  }

  _top(index) {
    const place = (index - this.first) * ROW;
    return this.opened !== null && index > this.opened ? place + OPEN : place;
  }

  _height() {
    const total = this.items.length * ROW;
    return this._isOpenHere() ? total + OPEN : total;
  }

  _isOpenHere() {
    return this.opened !== null && this.opened >= this.first && this.opened < this.first + this.items.length;
  }

  _layout() {
    if (this.opened !== null && !this._isOpenHere()) this.opened = null;
    const height = this._height();
    this.list.style.height = `${height}px`;
    this.empty.hidden = this.items.length > 0;
    if (this.follow) {
      const bottom = height - this.view.clientHeight;
      if (Math.abs(this.view.scrollTop - bottom) > 1) this.view.scrollTop = bottom;
    }
    this._draw();
    this.fresh.hidden = this.follow || this.unseen === 0;
    if (!this.fresh.hidden) fill(this.fresh, icon("down"), `${count(this.unseen)} new`);
  }

  _draw() {
    const top = this.view.scrollTop;
    const bottom = top + this.view.clientHeight;
    const end = this.first + this.items.length;
    const from = Math.max(this.first, this.first + Math.floor((top - (this._isOpenHere() ? OPEN : 0)) / ROW) - SPARE);
    const to = Math.min(end, this.first + Math.ceil(bottom / ROW) + SPARE);
    const wanted = new Set();
    for (let index = from; index < to; index += 1) wanted.add(index);
    if (this._isOpenHere()) wanted.add(this.opened);
    // The row with the focus stays, or the focus would be lost by scrolling.
    if (this.focused !== null && this.focused >= this.first && this.focused < end) wanted.add(this.focused);
    for (const [index, row] of this.rows) {
      if (!wanted.has(index)) {
        row.element.remove();
        this.rows.delete(index);
      }
    }
    // One row takes the tab key; the arrow keys go on from there.
    const lastShown = Math.min(end, this.first + Math.floor(bottom / ROW)) - 1;
    const tabStop = this.current !== null && wanted.has(this.current) ? this.current : Math.max(lastShown, this.first);
    for (const index of [...wanted].sort((a, b) => a - b)) {
      const item = this.items[index - this.first];
      let row = this.rows.get(index);
      if (row && row.item !== item) {
        row.element.remove();
        this.rows.delete(index);
        row = null;
      }
      if (!row) {
        row = this._make(index, item);
        this.rows.set(index, row);
        this._insert(index, row.element);
      }
      row.element.style.transform = `translateY(${this._top(index)}px)`;
      if (row.button) row.button.tabIndex = index === tabStop ? 0 : -1;
      this._open(row, index === this.opened);
    }
  }

  /** In the order of the tape, for the tab key and for screen readers. */
  _insert(index, element) {
    let next = null;
    for (let child = this.list.lastElementChild; child; child = child.previousElementSibling) {
      if (Number(child.dataset.index) < index) break;
      next = child;
    }
    this.list.insertBefore(element, next);
  }

  _make(index, item) {
    const element = h("li", { class: `row row-${item.kind}`, dataset: { index: String(index) } });
    if (item.kind === "note") {
      element.append(h("p", { class: "row-line note" }, icon("REVIEW"), item.text));
      return { element, item };
    }
    const told = this.describe(item);
    const number = told.number === null ? "–" : String(told.number);
    const button = h(
      "button",
      {
        type: "button", class: "row-line", "aria-expanded": "false", tabindex: "-1", dataset: { offset: number },
        onclick: () => this._toggle(index),
      },
      h("span", { class: "num" }, number),
      h("span", { class: `kind kind-${told.kind}` }, told.label),
      h("span", { class: "what" }, told.status ?? null, h("span", { class: "summary" }, told.summary)),
      h("span", { class: "at", title: told.title ?? null }, told.time ?? ""),
    );
    element.append(button);
    return { element, item, button };
  }

  _open(row, open) {
    if (!row.button || open === Boolean(row.panel)) return;
    row.button.setAttribute("aria-expanded", String(open));
    row.element.classList.toggle("is-open", open);
    if (!open) {
      row.panel.remove();
      row.panel = null;
      return;
    }
    const json = pretty(this.json(row.item));
    const copy = h("button", { type: "button", class: "quiet small" }, icon("copy"), "Copy JSON");
    copy.addEventListener("click", async () => {
      try {
        await navigator.clipboard.writeText(JSON.stringify(this.json(row.item)));
        fill(copy, icon("COMPLETED"), "Copied");
      } catch {
        fill(copy, icon("FAILED"), "Not allowed here");
      }
    });
    row.panel = h("div", { class: "row-json" }, copy, h("pre", { tabindex: "0" }, json));
    row.element.append(row.panel);
  }

  _toggle(index) {
    const wasFollowing = this.follow;
    this.opened = this.opened === index ? null : index;
    // Whoever reads an event does not want it to run away.
    if (this.opened !== null && wasFollowing) {
      this.follow = false;
      this.followBox.checked = false;
      this.unseen = 0;
    }
    this._layout();
    if (this.opened !== null) {
      const bottom = this._top(index) + ROW + OPEN;
      if (bottom > this.view.scrollTop + this.view.clientHeight) {
        this.view.scrollTop = Math.min(this._top(index), bottom - this.view.clientHeight);
      }
    }
  }

  _scrolled() {
    const atEnd = this.view.scrollTop + this.view.clientHeight >= this.view.scrollHeight - ROW / 2;
    if (this.follow && !atEnd) {
      this.follow = false;
      this.followBox.checked = false;
      this.unseen = 0;
    } else if (!this.follow && atEnd && this.opened === null && this.items.length) {
      this.setFollow(true);
      return;
    }
    this._draw();
  }

  _key(event) {
    const line = event.target.closest("button.row-line");
    if (!line) return;
    const here = Number(line.parentElement.dataset.index);
    const end = this.first + this.items.length - 1;
    const page = Math.max(1, Math.floor(this.view.clientHeight / ROW) - 1);
    const to = {
      ArrowDown: here + 1, ArrowUp: here - 1, Home: this.first, End: end, PageDown: here + page, PageUp: here - page,
    }[event.key];
    if (to === undefined) return;
    event.preventDefault();
    this._focus(Math.min(end, Math.max(this.first, to)));
  }

  _focus(index) {
    const top = this._top(index);
    if (top < this.view.scrollTop) this.view.scrollTop = top;
    else if (top + ROW > this.view.scrollTop + this.view.clientHeight) {
      this.view.scrollTop = top + ROW - this.view.clientHeight;
    }
    this.focused = index;
    this._draw();
    const row = this.rows.get(index);
    (row?.button ?? row?.element)?.focus({ preventScroll: true });
  }
}

/** Says at most every five seconds what came: each event by itself would be unusable. Failures are said at once. */
export class Announcer {
  constructor() {
    this.log = document.getElementById("announce");
    this.alarm = document.getElementById("alarm");
    this.events = 0;
    this.failures = 0;
    this.timer = null;
  }

  event(failed) {
    this.events += 1;
    if (failed) this.failures += 1;
    this.timer ??= setTimeout(() => this._say(), 5_000);
  }

  _say() {
    this.timer = null;
    const failures = this.failures ? `, ${plural(this.failures, "failure")}` : "";
    this._line(`${plural(this.events, "event")}${failures}`);
    this.events = 0;
    this.failures = 0;
  }

  _line(words) {
    this.log.append(h("p", {}, words));
    while (this.log.children.length > 5) this.log.firstChild.remove();
  }

  say(words) { this._line(words); }

  alert(words) { text(this.alarm, words); }

  destroy() {
    clearTimeout(this.timer);
    this.log.replaceChildren();
    this.alarm.replaceChildren();
  }
}
