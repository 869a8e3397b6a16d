// The shell: routes in the hash, the connection badge, sign-in.

import { session } from "./api.js";
import { fill, h, painter, text } from "./dom.js";
import { execution } from "./execution.js";
import { count } from "./format.js";
import { home } from "./home.js";
import { job, jobs } from "./job.js";
import { socket } from "./socket.js";

const main = document.getElementById("main");
const badge = document.getElementById("connection");
const signOut = document.getElementById("sign-out");

const app = {
  view: null,

  title(words) {
    const title = words ? `${words} – livetape` : "livetape";
    if (document.title !== title) document.title = title;
  },

  /** Asks for a token; the page goes on where it was. */
  signIn(why) {
    if (main.querySelector("form.sign-in")) return;
    show(signInView(why));
  },
};

function routes(hash) {
  const parts = hash.replace(/^#\/?/, "").split("/").filter(Boolean).map((part) => {
    try { return decodeURIComponent(part); } catch { return part; }
  });
  if (!parts.length) { app.title(""); return home(app); }
  if (parts[0] === "executions" && parts.length === 3) return execution(app, parts[1], parts[2]);
  if (parts[0] === "jobs" && parts.length === 1) { app.title("jobs"); return jobs(); }
  if (parts[0] === "jobs" && parts.length === 2) return job(app, parts[1]);
  app.title("not found");
  return {
    element: h("div", { class: "page narrow" }, h("section", { class: "panel" }, h("h1", { tabindex: "-1" }, "No such page"), h("p", {}, h("a", { href: "#/" }, "All executions")))),
    destroy() {},
  };
}

function show(view) {
  app.view?.destroy();
  document.querySelector("dialog")?.close();
  app.view = view;
  main.replaceChildren(view.element);
  for (const link of document.querySelectorAll("nav a")) {
    const here = link.getAttribute("href") === "#/jobs" ? location.hash.startsWith("#/jobs") : !location.hash.startsWith("#/jobs");
    if (here) link.setAttribute("aria-current", "page");
    else link.removeAttribute("aria-current");
  }
  signOut.hidden = !session.token;
}

let first = true;
function route() {
  show(routes(location.hash));
  if (!first) {
    main.querySelector("h1")?.focus({ preventScroll: true });
    scrollTo(0, 0);
  }
  first = false;
}

function signInView(why) {
  app.title("sign in");
  const input = h("input", { type: "password", id: "token", required: true, autocomplete: "off", spellcheck: "false" });
  const trouble = h("div", { class: "trouble", role: "alert", hidden: !(session.token && why) }, h("p", {}, why ?? ""));
  const form = h("form", { class: "sign-in" },
    h("h1", { tabindex: "-1" }, "Sign in"),
    h("p", { class: "muted" }, "This server asks for a token. It is kept in this tab only."),
    h("label", { for: "token" }, "Token"), input,
    h("p", { class: "hint" }, "Make one on the server: ", h("code", {}, "livetape token create --user NAME")),
    trouble,
    h("div", { class: "actions" }, h("button", { type: "submit", class: "primary" }, "Sign in")));
  form.addEventListener("submit", (event) => {
    event.preventDefault();
    session.token = input.value.trim();
    socket.restart();
    route();
  });
  return { element: h("div", { class: "page narrow" }, h("section", { class: "panel" }, form)), destroy() {} };
}

// --- the badge --------------------------------------------------------------------------------------------------------

const words = h("span");
const dot = h("span", { class: "dot", "aria-hidden": "true" });
const retry = h("button", { type: "button", class: "quiet small", hidden: true, onclick: () => socket.retryNow() }, "Retry now");
const spoken = h("span", { class: "visually-hidden", role: "status" });
fill(badge, dot, words, retry, spoken);

function drawBadge() {
  const told = socket.summary;
  let line = "";
  switch (told.state) {
    case "live": line = "Live"; break;
    case "catching-up": line = told.waiting ? `Catching up · ${count(told.waiting)} to go` : "Catching up"; break;
    case "connecting": line = "Connecting"; break;
    case "offline": line = `Offline · retry in ${Math.ceil(told.retryIn / 1000)} s`; break;
    case "refused": line = "Not signed in"; break;
    case "done": line = "Tape complete"; break;
    default:
  }
  badge.dataset.state = told.state;
  badge.hidden = !line;
  text(words, line);
  retry.hidden = told.state !== "offline" || told.retryIn < 1500;
  // Said without the countdown, which would be said each second.
  text(spoken, told.state === "offline" ? "Offline, reconnecting" : told.state === "live" ? "Live" : "");
}

socket.addEventListener("change", painter(drawBadge));
setInterval(() => { if (socket.summary.state === "offline") drawBadge(); }, 250);
socket.addEventListener("signin", () => app.signIn("The server did not accept this token."));
socket.addEventListener("trouble", (event) => console.warn("livetape: the server said", event.detail?.error));

signOut.addEventListener("click", () => {
  session.token = null;
  socket.restart();
  route();
});
document.getElementById("skip").addEventListener("click", (event) => {
  event.preventDefault();
  main.focus();
});
addEventListener("hashchange", route);
drawBadge();
route();
