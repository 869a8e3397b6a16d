// One WebSocket for the page, with subscriptions that survive it. Each remembers its position (epoch, offset) and asks
// for what came after it when the socket is back; numbers that came already are dropped, numbers that are missing are
// reported, so that what a view is given is each event once and in order, or the truth about what is not there.

import { apiUrl, session, uuid } from "./api.js";

const BACKOFF_FIRST = 500;
const BACKOFF_MOST = 30_000;
const HEARTBEAT_EVERY = 20_000;
const HEARTBEAT_ANSWER = 10_000;
const OPEN_WITHIN = 10_000;
// Where only a person with a token helps: no blind retry.
const SIGN_IN_CODES = new Set([4001, 4002, 4003]);

/**
 * What a view gives: {method, data, since, dense, onEvent(event), onReply(reply), onCaughtUp(), onMissing(from, to),
 * onLost(reply), onError(text, message)}. `dense`: numbers rise by one.
 */
class Subscription {
  constructor(socket, options) {
    this.socket = socket;
    this.options = options;
    this.channel = null;
    this.position = null; // {epoch, offset}: everything up to here was given to the view
    this.state = "waiting"; // waiting | catching-up | live | done | refused
    this.expected = 0; // events announced by the reply
    this.received = 0; // of them
    this.duplicates = 0;
  }

  close() { this.socket._unsubscribe(this); }
}

export class Socket extends EventTarget {
  constructor() {
    super();
    this.subscriptions = new Set();
    this.pending = new Map(); // message id -> subscription
    this.ws = null;
    this.state = "idle"; // idle | connecting | open | offline | refused
    this.attempts = 0;
    this.retryAt = null;
    this.timers = {};
    addEventListener("online", () => { if (this.state === "offline") this.retryNow(); });
  }

  subscribe(options) {
    const subscription = new Subscription(this, options);
    this.subscriptions.add(subscription);
    if (this.state === "open") this._send(subscription);
    else if (this.state === "idle" || this.state === "refused") this._connect();
    this._changed();
    return subscription;
  }

  retryNow() {
    clearTimeout(this.timers.retry);
    this._connect();
  }

  /** After sign-in or sign-out: begin again with the token of now. */
  restart() {
    this._drop();
    this.attempts = 0;
    this.state = "idle";
    if (this.subscriptions.size) this._connect();
    this._changed();
  }

  /** For the badge: {state, retryIn (ms), waiting (events still to come)}. */
  get summary() {
    if (this.subscriptions.size && !this._anyOpen()) return { state: "done" };
    if (this.state === "offline") return { state: "offline", retryIn: Math.max(0, this.retryAt - Date.now()) };
    if (this.state !== "open") return { state: this.state };
    let state = "live";
    let waiting = 0;
    for (const sub of this.subscriptions) {
      if (sub.state === "waiting" || sub.state === "catching-up") {
        state = "catching-up";
        waiting += Math.max(0, sub.expected - sub.received);
      }
    }
    return { state, waiting };
  }

  /** Whether any subscription still expects something. */
  _anyOpen() {
    for (const sub of this.subscriptions) if (sub.state !== "done" && sub.state !== "refused") return true;
    return false;
  }

  _changed() { this.dispatchEvent(new Event("change")); }

  _connect() {
    this._drop();
    this.state = "connecting";
    this.retryAt = null;
    const url = apiUrl("ws");
    url.protocol = url.protocol === "https:" ? "wss:" : "ws:";
    const token = session.token;
    const protocols = [];
    if (token) {
      // A JWT is made of characters that a subprotocol may have; anything else has to go by the query.
      if (/^[A-Za-z0-9!#$%&'*+.^_`|~-]+$/.test(token)) protocols.push("livetape.v1", `bearer.${token}`);
      else url.searchParams.set("token", token);
    }
    const ws = protocols.length ? new WebSocket(url, protocols) : new WebSocket(url);
    this.ws = ws;
    this.timers.open = setTimeout(() => { if (ws.readyState === WebSocket.CONNECTING) this._lost(ws, 0); }, OPEN_WITHIN);
    ws.addEventListener("open", () => this._opened(ws));
    ws.addEventListener("message", (event) => { if (this.ws === ws) this._received(event.data); });
    ws.addEventListener("close", (event) => this._lost(ws, event.code));
    this._changed();
  }

  _opened(ws) {
    if (this.ws !== ws) return;
    clearTimeout(this.timers.open);
    this.state = "open";
    this.timers.heartbeat = setInterval(() => this._heartbeat(), HEARTBEAT_EVERY);
    for (const sub of this.subscriptions) {
      if (sub.state !== "done" && sub.state !== "refused") this._send(sub);
    }
    this._changed();
  }

  _heartbeat() {
    this._write({ method: "heartbeat", data: "ping", success: true });
    clearTimeout(this.timers.silence);
    const ws = this.ws;
    this.timers.silence = setTimeout(() => this._lost(ws, 0), HEARTBEAT_ANSWER);
  }

  _lost(ws, code, delay = null) {
    if (this.ws !== ws) return;
    this._drop();
    for (const sub of this.subscriptions) {
      if (sub.state === "live" || sub.state === "catching-up") sub.state = "waiting";
      sub.channel = null;
    }
    if (SIGN_IN_CODES.has(code)) {
      this.state = "refused";
      this.dispatchEvent(new CustomEvent("signin", { detail: { code } }));
    } else if (!this._anyOpen()) {
      this.state = "idle"; // everything watched is over
    } else {
      this.state = "offline";
      const most = Math.min(BACKOFF_MOST, BACKOFF_FIRST * 2 ** this.attempts);
      this.attempts += 1;
      const wait = delay ?? 150 + Math.random() * most;
      this.retryAt = Date.now() + wait;
      this.timers.retry = setTimeout(() => this._connect(), wait);
    }
    this._changed();
  }

  _drop() {
    for (const timer of Object.values(this.timers)) clearTimeout(timer);
    this.pending.clear();
    const ws = this.ws;
    this.ws = null;
    if (ws && ws.readyState <= WebSocket.OPEN) ws.close(1000);
  }

  _write(message) {
    if (this.ws?.readyState === WebSocket.OPEN) this.ws.send(JSON.stringify(message));
  }

  _send(sub, since = sub.position ?? sub.options.since) {
    const id = uuid();
    this.pending.set(id, { sub, since });
    sub.state = "catching-up";
    sub.expected = 0;
    sub.received = 0;
    this._write({ method: sub.options.method, id, data: { ...sub.options.data, since } });
  }

  _unsubscribe(sub) {
    if (!this.subscriptions.delete(sub)) return;
    if (sub.channel) this._write({ method: "unsubscribe", id: uuid(), data: { channel: sub.channel } });
    if (!this.subscriptions.size) {
      // Nothing is watched, nothing to keep alive; but the next page will want it in a moment.
      clearTimeout(this.timers.idle);
      this.timers.idle = setTimeout(() => {
        if (this.subscriptions.size) return;
        this._drop();
        this.state = "idle";
        this.attempts = 0;
        this._changed();
      }, 2_000);
    }
    this._changed();
  }

  _received(raw) {
    clearTimeout(this.timers.silence);
    let message;
    try { message = JSON.parse(raw); } catch { return; }
    if (message === null || typeof message !== "object") return;
    if (message.id !== undefined && this.pending.has(message.id)) {
      const { sub, since } = this.pending.get(message.id);
      this.pending.delete(message.id);
      if (this.subscriptions.has(sub)) this._replied(sub, since, message);
      return;
    }
    switch (message.method) {
      case "heartbeat": case "unsubscribe": return;
      case "reconnect": {
        const seconds = Number(message.data?.retry_after ?? message.data?.after ?? 0);
        this._lost(this.ws, 1012, (Number.isFinite(seconds) ? seconds * 1000 : 0) + 100 + Math.random() * 900);
        return;
      }
      case "error":
        this.dispatchEvent(new CustomEvent("trouble", { detail: message }));
        if (!Number.isInteger(message.offset)) return;
        break; // stands for the event with this number
      case "token_expiring": case "notification":
        this.dispatchEvent(new CustomEvent(message.method, { detail: message }));
        return;
      default:
    }
    for (const sub of this.subscriptions) {
      if (sub.channel !== null && sub.channel === message.channel) this._pushed(sub, message, raw.length);
    }
  }

  _replied(sub, since, message) {
    if (message.method === "error" || message.success === false) {
      sub.state = "refused";
      sub.options.onError?.(message.error ?? "The server refused the subscription.", message);
      this._changed();
      return;
    }
    this.attempts = 0;
    sub.channel = message.channel;
    const data = message.data ?? {};
    sub.expected = Number(data.count ?? 0);
    // Without an epoch there is no tape yet: nothing to recover, and its numbers will show whether any is missed.
    if (data.recovered === false && !(since === "earliest" && !data.epoch)) {
      sub.options.onLost?.(data, since);
      if (since !== null && typeof since === "object") {
        // The position cannot be honoured: take the whole tape as it is now. What came already is dropped by number.
        if (data.epoch && data.epoch !== sub.position?.epoch) sub.position = null;
        this._write({ method: "unsubscribe", id: uuid(), data: { channel: sub.channel } });
        sub.channel = null; // until the next reply: what still belongs to this one is not for us
        this._send(sub, "earliest");
        return;
      }
    }
    sub.options.onReply?.(message);
    // "latest" and servers without replay have nothing to catch up with.
    if (since === undefined || since === "latest") this._caughtUp(sub);
    this._changed();
  }

  _caughtUp(sub) {
    if (sub.state !== "catching-up") return;
    sub.state = "live";
    sub.options.onCaughtUp?.();
    this._changed();
  }

  /** "Everything up to here was sent": what did not come is missing, and here is where to go on. */
  _reached(sub, { offset, epoch }) {
    if (!Number.isInteger(offset) || typeof epoch !== "string") return;
    const known = sub.position?.epoch === epoch ? sub.position.offset : 0;
    if (sub.position && sub.position.epoch !== epoch) return;
    if (offset <= known) return;
    if (sub.options.dense) sub.options.onMissing?.(known + 1, offset);
    sub.position = { epoch, offset };
  }

  _pushed(sub, message, size) {
    if (message.method === "replay_complete") {
      this._reached(sub, message);
      this._caughtUp(sub);
      return;
    }
    if (message.method === "unsubscribed") {
      if (sub.state !== "done") sub.state = "refused";
      sub.options.onError?.("The server ended this subscription.", message);
      this._changed();
      return;
    }
    if (message.method === "gap") {
      sub.options.onGap?.(message);
      // The server has said it: the numbers up to here will not come.
      const { to, epoch } = message.data ?? {};
      const same = !sub.position || !epoch || sub.position.epoch === epoch;
      if (Number.isInteger(to) && same && to > (sub.position?.offset ?? 0)) {
        sub.position = { epoch: epoch ?? sub.position?.epoch, offset: to };
      }
      return;
    }
    const { offset, epoch } = message;
    if (Number.isInteger(offset)) {
      const before = sub.position;
      if (before && before.epoch === epoch) {
        if (offset <= before.offset) { sub.duplicates += 1; return; }
        if (sub.options.dense && offset > before.offset + 1) sub.options.onMissing?.(before.offset + 1, offset - 1);
      } else {
        if (before) sub.options.onEpoch?.(before, { epoch, offset });
        if (sub.options.dense && offset > 1) sub.options.onMissing?.(1, offset - 1);
      }
      sub.position = { epoch, offset };
    }
    if (sub.state === "catching-up") {
      sub.received += 1;
      this._changed();
    }
    sub.options.onEvent?.(message, size, sub.state === "live");
    if (message.final === true) {
      sub.state = "done";
      this._changed();
    }
  }
}

export const socket = new Socket();
