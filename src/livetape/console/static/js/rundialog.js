// Starting a graph: a form made from its input schema.

import { api, uuid } from "./api.js";
import { fill, h } from "./dom.js";

/** The type of a property, whatever way the schema says it (`anyOf` with null is an optional value). */
function typeOf(property) {
  if (typeof property.type === "string") return property.type;
  const options = property.anyOf ?? property.oneOf ?? [];
  return options.find((option) => option.type && option.type !== "null")?.type ?? "any";
}

function field(name, property, required, prefill) {
  // Where the schema names no type, a text as default says that text is meant.
  const type = typeOf(property) === "any" && typeof property.default === "string" ? "string" : typeOf(property);
  const id = `input-${uuid()}`;
  const initial = prefill ?? property.default ?? null;
  const choices = property.enum ?? property.options ?? property.placeholder_values;
  let control;
  let read;
  const asText = initial === null ? "" : typeof initial === "string" ? initial : JSON.stringify(initial);
  if (Array.isArray(choices) && choices.length) {
    control = h("select", { id }, required ? null : h("option", { value: "" }, ""),
      choices.map((choice, at) => h("option", { value: String(at) }, typeof choice === "string" ? choice : JSON.stringify(choice))));
    const chosen = choices.findIndex((choice) => JSON.stringify(choice) === JSON.stringify(initial));
    control.value = chosen >= 0 ? String(chosen) : required ? "0" : "";
    read = () => (control.value === "" ? undefined : choices[Number(control.value)]);
  } else if (type === "boolean") {
    control = h("input", { id, type: "checkbox" });
    control.checked = initial === true;
    read = () => control.checked;
  } else if (type === "integer" || type === "number") {
    control = h("input", { id, type: "number", step: type === "integer" ? "1" : "any", value: asText });
    read = () => (control.value === "" ? undefined : Number(control.value));
  } else if (type === "object" || type === "array") {
    control = h("textarea", { id, rows: "4", spellcheck: "false", class: "mono", value: initial === null ? "" : JSON.stringify(initial, null, 2) });
    read = () => {
      if (!control.value.trim()) return undefined;
      try { return JSON.parse(control.value); } catch (error) { throw new Error(`${name}: ${error.message}`); }
    };
  } else if (type === "string") {
    const long = property.format === "long-text" || asText.length > 80 || asText.includes("\n");
    const secret = property.secret === true || property.format === "password";
    control = long
      ? h("textarea", { id, rows: "4", value: asText })
      : h("input", { id, type: secret ? "password" : "text", autocomplete: "off", value: asText });
    read = () => (control.value === "" && !required ? undefined : control.value);
  } else {
    control = h("input", { id, type: "text", autocomplete: "off", value: asText });
    // No type: a number, list or object when it reads as one, else the text.
    read = () => {
      if (control.value === "") return required ? "" : undefined;
      try { return JSON.parse(control.value); } catch { return control.value; }
    };
  }
  control.name = name;
  if (required && control.type !== "checkbox") control.required = true;
  const hint = property.description || (type === "any" ? "Text, or JSON" : type === "object" || type === "array" ? "JSON" : "");
  const hintId = `${id}-hint`;
  if (hint) control.setAttribute("aria-describedby", hintId);
  const label = h("label", { for: id }, property.title || name, required ? null : h("span", { class: "optional" }, " optional"));
  const element = control.type === "checkbox"
    ? h("div", { class: "field check" }, control, label, hint ? h("p", { class: "hint", id: hintId }, hint) : null)
    : h("div", { class: "field" }, label, control, hint ? h("p", { class: "hint", id: hintId }, hint) : null);
  return { name, element, read, control };
}

/** What the API says about an input that it refuses, as a list. */
export function problem(error) {
  const parts = [h("p", {}, error.message)];
  const nodes = error.body?.detail?.node_errors;
  if (nodes && typeof nodes === "object") {
    const items = [];
    for (const [node, fields] of Object.entries(nodes)) {
      for (const [name, why] of Object.entries(fields ?? {})) items.push(h("li", {}, `${name}: ${why}`, h("span", { class: "faint" }, ` (node ${node})`)));
    }
    parts.push(h("ul", {}, items));
  }
  if (error.hint) parts.push(h("p", { class: "hint" }, error.hint));
  return parts;
}

/** Runs a graph: at once when it takes no inputs, else after its form. Resolves when started or given up. */
export async function runGraph(graphId, { version, prefill, ask = false, onUnauthorized } = {}) {
  const graph = await api.graph(graphId, version);
  const properties = Object.entries(graph.input_schema?.properties ?? {});
  const required = new Set(graph.input_schema?.required ?? []);
  if (!properties.length && !ask) {
    const execution = await api.start(graph.id, graph.version, {}, uuid());
    location.hash = executionLink(execution);
    return;
  }
  const fields = properties.map(([name, property]) => field(name, property ?? {}, required.has(name), prefill?.[name]));
  const trouble = h("div", { class: "trouble", role: "alert", hidden: true });
  const submit = h("button", { type: "submit", class: "primary" }, "Run");
  const cancel = h("button", { type: "button", onclick: () => dialog.close() }, "Cancel");
  const titleId = `run-${uuid()}`;
  const form = h("form", { novalidate: false },
    h("h2", { id: titleId }, `Run ${graph.name}`),
    graph.description ? h("p", { class: "muted" }, graph.description) : null,
    fields.map((one) => one.element),
    fields.length ? null : h("p", { class: "muted" }, "This graph takes no inputs."),
    trouble,
    h("div", { class: "actions" }, cancel, submit));
  const dialog = h("dialog", { class: "run", "aria-labelledby": titleId }, form);
  // One key per different body: pressing Run again after a lost answer cannot start it twice.
  let sent = { body: null, key: null };
  form.addEventListener("submit", async (event) => {
    event.preventDefault();
    trouble.hidden = true;
    try {
      const inputs = {};
      for (const one of fields) {
        const value = one.read();
        if (value !== undefined) inputs[one.name] = value;
      }
      const body = JSON.stringify(inputs);
      if (sent.body !== body) sent = { body, key: uuid() };
      submit.disabled = true;
      const execution = await api.start(graph.id, graph.version, inputs, sent.key);
      dialog.close();
      location.hash = executionLink(execution);
    } catch (error) {
      if (error.unauthorized) { dialog.close(); onUnauthorized?.(); return; }
      if (error.status >= 400 && error.status < 500) sent = { body: null, key: null };
      fill(trouble, problem(error));
      trouble.hidden = false;
    } finally {
      submit.disabled = false;
    }
  });
  await new Promise((resolve) => {
    dialog.addEventListener("close", () => { dialog.remove(); resolve(); });
    document.body.append(dialog);
    dialog.showModal();
  });
}

export function executionLink(execution) {
  return `#/executions/${encodeURIComponent(execution.graph_id)}/${encodeURIComponent(execution.id)}`;
}
