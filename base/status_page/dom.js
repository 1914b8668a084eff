"use strict";
// What the parts of the page share: elements, formats of figures, and the key of the requests.
const $ = (id) => document.getElementById(id);

const element = (name, parts = {}, ...children) => {
  const made = document.createElement(name);
  Object.assign(made, parts);
  made.append(...children);
  return made;
};

const button = (name, act, parts = {}) => {
  const made = element("button", { type: "button", ...parts }, name);
  made.addEventListener("click", () => act(made));
  return made;
};

// An element of SVG or MathML.
const foreign = (namespace, name, attributes, ...children) => {
  const made = document.createElementNS(namespace, name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  made.append(...children);
  return made;
};

const round = (value, digits = 1) => value.toFixed(value >= 100 ? 0 : digits);

// The key stays in this tab: neither other tabs nor a later session of the browser have it.
const apiKey = {
  get: () => sessionStorage.getItem("vllm-cli key") ?? "",
  set: (key) => sessionStorage.setItem("vllm-cli key", key),
  headers: () => apiKey.get() ? { Authorization: `Bearer ${apiKey.get()}` } : {},
};

// The message of an answer that is no success.
const errorText = async (answer) => {
  const body = await answer.json().catch(() => null);
  return body?.error?.message ?? body?.message ?? `HTTP ${answer.status}`;
};
