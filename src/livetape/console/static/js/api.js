// The REST API, relative to the page. No token is needed on loopback; a token given at sign-in lives in this tab only.

const TOKEN = "livetape.token";

export const session = {
  get token() { return sessionStorage.getItem(TOKEN); },
  set token(value) {
    if (value) sessionStorage.setItem(TOKEN, value);
    else sessionStorage.removeItem(TOKEN);
  },
};

export class ApiError extends Error {
  constructor(message, { status = 0, hint = "", body = null } = {}) {
    super(message);
    this.status = status;
    this.hint = hint;
    this.body = body;
  }

  get unauthorized() { return this.status === 401; }
}

export function apiUrl(path) {
  return new URL(path, document.baseURI.replace(/[?#].*$/, ""));
}

/** The API's errors say what, because and what to do; older shapes have `detail` alone. */
function explain(status, body) {
  const detail = body?.detail;
  if (typeof detail === "string") return detail;
  if (Array.isArray(detail)) {
    return detail.map((item) => `${(item.loc ?? []).join(".")}: ${item.msg ?? ""}`).join("; ") || body.message;
  }
  if (detail && typeof detail === "object") return detail.message ?? body.message ?? `status ${status}`;
  return body?.message ?? body?.title ?? `The server answered with status ${status}.`;
}

async function call(method, path, { body, headers = {}, signal } = {}) {
  const all = { accept: "application/json", ...headers };
  if (session.token) all.authorization = `Bearer ${session.token}`;
  if (body !== undefined) all["content-type"] = "application/json";
  let response;
  try {
    response = await fetch(apiUrl(path), {
      method, headers: all, signal, body: body === undefined ? undefined : JSON.stringify(body), cache: "no-store",
    });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new ApiError("The server does not answer.", { hint: "Is it running? Start it with: livetape up" });
  }
  let parsed = null;
  const raw = await response.text();
  try { parsed = raw ? JSON.parse(raw) : null; } catch { parsed = null; }
  if (!response.ok) {
    throw new ApiError(explain(response.status, parsed), { status: response.status, hint: parsed?.hint ?? "", body: parsed });
  }
  return parsed;
}

const part = encodeURIComponent;

export const api = {
  graphs: (options) => call("GET", "api/graphs", options),
  graph: (id, version, options) =>
    call("GET", `api/graphs/${part(id)}${version === undefined ? "" : `?version=${part(version)}`}`, options),
  blocks: (options) => call("GET", "api/blocks", options),
  executions: (options) => call("GET", "api/executions", options),
  execution: (graph, id, options) => call("GET", `api/graphs/${part(graph)}/executions/${part(id)}`, options),
  stop: (graph, id) => call("POST", `api/graphs/${part(graph)}/executions/${part(id)}/stop`),
  start: (graph, version, inputs, idempotencyKey) =>
    call("POST", `api/graphs/${part(graph)}/execute/${part(version)}`, {
      body: { inputs }, headers: { "idempotency-key": idempotencyKey },
    }),
};

/** Blocks by id ({name, kind}), asked for once; an API without them leaves ids on the page. */
let known = null;
export async function blocks() {
  if (!known) {
    try {
      known = new Map((await api.blocks()).map((block) => [block.id, { name: block.name, kind: block.uiType }]));
    } catch (error) {
      if (error.unauthorized || error.name === "AbortError") throw error;
      return new Map();
    }
  }
  return known;
}

/** Also where `crypto.randomUUID` is missing (plain http beyond loopback). */
export function uuid() {
  if (crypto.randomUUID) return crypto.randomUUID();
  const bytes = crypto.getRandomValues(new Uint8Array(16));
  bytes[6] = (bytes[6] & 0x0f) | 0x40;
  bytes[8] = (bytes[8] & 0x3f) | 0x80;
  const hex = [...bytes].map((byte) => byte.toString(16).padStart(2, "0")).join("");
  return [hex.slice(0, 8), hex.slice(8, 12), hex.slice(12, 16), hex.slice(16, 20), hex.slice(20)].join("-");
}
