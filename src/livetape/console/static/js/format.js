// Values, durations and times as short text.

export function count(n) {
  return Number(n).toLocaleString("en");
}

export function plural(n, one, many = `${one}s`) {
  return `${count(n)} ${n === 1 ? one : many}`;
}

/** Milliseconds as a person says them. */
export function duration(ms) {
  if (ms === null || ms === undefined || !Number.isFinite(ms)) return "–";
  const clamped = Math.max(0, ms);
  if (clamped < 1000) return `${Math.round(clamped)} ms`;
  const seconds = clamped / 1000;
  if (seconds < 10) return `${seconds.toFixed(2)} s`;
  if (seconds < 60) return `${seconds.toFixed(1)} s`;
  const whole = Math.floor(seconds);
  const two = (n) => String(n).padStart(2, "0");
  if (whole < 3600) return `${Math.floor(whole / 60)} m ${two(whole % 60)} s`;
  return `${Math.floor(whole / 3600)} h ${two(Math.floor((whole % 3600) / 60))} m`;
}

export function ago(iso, now = Date.now()) {
  const then = when(iso);
  if (then === null) return "–";
  const seconds = Math.max(0, Math.round((now - then) / 1000));
  if (seconds < 5) return "just now";
  if (seconds < 60) return `${seconds} s ago`;
  if (seconds < 3600) return `${Math.floor(seconds / 60)} min ago`;
  if (seconds < 86400) return `${Math.floor(seconds / 3600)} h ago`;
  return new Date(then).toLocaleDateString(undefined, { day: "numeric", month: "short", year: "numeric" });
}

/** ISO text to milliseconds, or null. A time without zone is UTC. */
export function when(iso) {
  if (!iso) return null;
  const zoned = /(Z|[+-]\d\d:?\d\d)$/.test(iso) ? iso : `${iso}Z`;
  const ms = Date.parse(zoned);
  return Number.isNaN(ms) ? null : ms;
}

/** One line of JSON of at most about `room` characters, made without walking a large value to its end. */
export function preview(value, room = 160) {
  let left = room;
  const write = (item) => {
    if (left <= 0) return "…";
    let out;
    if (typeof item === "string") {
      out = item.length > left ? `${JSON.stringify(item.slice(0, left)).slice(0, -1)}…` : JSON.stringify(item);
    } else if (Array.isArray(item)) {
      left -= 2;
      const parts = [];
      for (const child of item) {
        parts.push(write(child));
        if (left <= 0) { if (parts.length < item.length) parts.push("…"); break; }
      }
      return `[${parts.join(", ")}]`;
    } else if (item !== null && typeof item === "object") {
      left -= 2;
      const parts = [];
      for (const key in item) {
        left -= key.length + 2;
        parts.push(`${key.length > 60 ? `${key.slice(0, 60)}…` : key}: ${write(item[key])}`);
        if (left <= 0) { parts.push("…"); break; }
      }
      return `{${parts.join(", ")}}`;
    } else {
      out = item === undefined ? "" : String(item);
    }
    left -= out.length;
    return out;
  };
  return write(value);
}

const PRETTY_LIMIT = 100_000;

export function pretty(value) {
  const json = JSON.stringify(value, null, 2) ?? "";
  if (json.length <= PRETTY_LIMIT) return json;
  return `${json.slice(0, PRETTY_LIMIT)}\n… ${count(json.length - PRETTY_LIMIT)} more characters; the API has it in full`;
}

export function shortId(id) {
  const whole = String(id ?? "");
  return whole.length > 14 ? `${whole.slice(0, 8)}…${whole.slice(-4)}` : whole;
}

/** "AgentInputBlock" -> "Agent Input". */
export function blockTitle(name) {
  return String(name).replace(/Block$/, "").replace(/([a-z\d])([A-Z])/g, "$1 $2").replace(/([A-Z]+)([A-Z][a-z])/g, "$1 $2");
}
