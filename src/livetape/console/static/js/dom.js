// Building the page. Text from outside becomes text nodes here and nowhere else; no markup is ever parsed.

const SVG = "http://www.w3.org/2000/svg";

/** h("p", {class: "note", onclick: f, "aria-label": "x", hidden: true}, "text", node, null) */
export function h(tag, props = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(props ?? {})) {
    if (value === null || value === undefined || value === false) continue;
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (name === "value") element.value = value;
    else if (name === "dataset") Object.assign(element.dataset, value);
    else element.setAttribute(name, value === true ? "" : String(value));
  }
  append(element, children);
  return element;
}

function append(element, children) {
  for (const child of children) {
    if (child === null || child === undefined || child === false) continue;
    if (Array.isArray(child)) append(element, child);
    else element.append(child instanceof Node ? child : String(child));
  }
}

/** Replaces the children. */
export function fill(element, ...children) {
  element.replaceChildren();
  append(element, children);
  return element;
}

/** Sets text only when it differs, so that an unchanged page is not laid out again and selections stay. */
export function text(element, value) {
  const wanted = String(value);
  if (element.textContent !== wanted) element.textContent = wanted;
  return element;
}

const PATHS = {
  // 16 x 16, drawn with strokes
  COMPLETED: "M3.5 8.5l3 3 6-7",
  FAILED: "M4 4l8 8M12 4l-8 8",
  TERMINATED: "M4.5 4.5h7v7h-7z",
  RUNNING: "M8 2.5a5.5 5.5 0 1 0 5.5 5.5",
  QUEUED: "M8 3v5l3 2M8 1.8a6.2 6.2 0 1 0 .01 0z",
  REVIEW: "M6 3.5v9M10 3.5v9",
  INCOMPLETE: "M3 8h.01M8 8h.01M13 8h.01",
  NONE: "M4 8h8",
  live: "M8 8h.01",
  copy: "M6 6h7v7H6zM3 10V3h7",
  play: "M5 3.5l7 4.5-7 4.5z",
  pause: "M5.5 3.5v9M10.5 3.5v9",
  down: "M8 3v9M4 8.5l4 4 4-4",
  stop: "M4.5 4.5h7v7h-7z",
};

export function icon(name) {
  const svg = document.createElementNS(SVG, "svg");
  svg.setAttribute("viewBox", "0 0 16 16");
  svg.setAttribute("aria-hidden", "true");
  svg.setAttribute("class", `icon icon-${name}`);
  const path = document.createElementNS(SVG, "path");
  path.setAttribute("d", PATHS[name] ?? PATHS.NONE);
  svg.append(path);
  return svg;
}

const WORDS = {
  INCOMPLETE: "Incomplete", QUEUED: "Queued", RUNNING: "Running", REVIEW: "Review",
  COMPLETED: "Completed", FAILED: "Failed", TERMINATED: "Terminated", NONE: "Not started",
};

export const TERMINAL = new Set(["COMPLETED", "FAILED", "TERMINATED"]);

/** A status by icon and word. `data-status` carries the wire's word; unknown words are shown as they are. */
export function statusPill(status) {
  const element = h("span", { class: "status" });
  setStatus(element, status);
  return element;
}

export function setStatus(element, status) {
  const key = status ?? "NONE";
  if (element.dataset.status === key) return;
  element.dataset.status = key;
  fill(element, icon(key), h("span", {}, WORDS[key] ?? key));
}

/** `<time>` with the absolute time as title; the text is chosen by the caller. */
export function time(iso, shown) {
  const element = h("time", {}, shown);
  if (iso) {
    element.dateTime = iso;
    element.title = new Date(iso).toLocaleString(undefined, { dateStyle: "medium", timeStyle: "long" });
  }
  return element;
}

/** Runs `draw` at most once per frame, and at most twice a second when the page is hidden. */
export function painter(draw) {
  let due = false;
  const run = () => { due = false; draw(); };
  return () => {
    if (due) return;
    due = true;
    if (document.hidden) setTimeout(run, 500);
    else requestAnimationFrame(run);
  };
}

/**
 * Keeps the children of `parent` equal to `items`, by key: elements are made once, patched in place and moved only
 * when the order changed.
 */
export function patchList(parent, items, keyOf, make, patch) {
  parent._known ??= new Map();
  const known = parent._known;
  const wanted = new Set(items.map(keyOf));
  for (const [key, entry] of known) {
    if (!wanted.has(key)) {
      entry.element.remove();
      known.delete(key);
    }
  }
  let place = parent.firstChild;
  for (const item of items) {
    const key = keyOf(item);
    let entry = known.get(key);
    if (!entry) {
      entry = make(item);
      known.set(key, entry);
    }
    if (entry.element !== place) parent.insertBefore(entry.element, place);
    else place = place.nextSibling;
    patch(entry, item);
  }
}
