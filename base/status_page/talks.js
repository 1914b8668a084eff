"use strict";
// The conversations that this browser keeps, each in localStorage under its id, and the variants of their messages.
const talks = (() => {
  const KEPT = "vllm-cli chat ", RUNNING_MS = 5000, DEEPEST = 100, lines = (text) => text.split("\n").filter((line) => line);
  const SETTINGS = [ // field, member of a conversation, member of a request and how its value is read
    ["system", "system"], ["temperature", "temperature", "temperature", Number], ["top-p", "topP", "top_p", Number],
    ["max-tokens", "maxTokens", "max_tokens", Number], ["seed", "seed", "seed", Number], ["stop-at", "stop", "stop", lines],
  ];
  const NAMES = SETTINGS.map(([, name]) => name);
  // An image at another address would be fetched by the server, or by the browser, for whoever has written the file.
  const isImage = (value) => isText(value) && /^data:image\/[\w.+-]+;base64,/i.test(value);
  const seen = new WeakMap(); // conversation -> what the storage had when this tab last read or wrote it
  const isText = (value) => typeof value === "string";
  const list = (value, isFit) => Array.isArray(value) ? value.filter(isFit) : [];

  function create(settings = {}) {
    const texts = Object.fromEntries(NAMES.map((name) => [name, settings[name] ?? ""]));
    return { id: crypto.getRandomValues(new Uint32Array(2)).join("-"), title: "", model: null, ...texts, changed: Date.now(), messages: [] };
  }

  // A conversation as a file or an earlier version of the page has written it. What is missing or misfits gets its default.
  function parse(found) {
    if (!Array.isArray(found?.messages)) return null;
    const made = create();
    for (const name of ["id", "title", "model", "changed", ...NAMES]) if (typeof found[name] === typeof (made[name] ?? "")) made[name] = found[name];
    made.messages = parseMessages(found.messages, Date.now() - made.changed < RUNNING_MS, 0);
    return made;
  }

  function parseMessages(found, isRunning, depth) {
    const isMessage = (each) => ["user", "assistant"].includes(each?.role) && isText(each.text);
    return list(found, isMessage).map((each) => {
      const made = { role: each.role, text: each.text, images: list(each.images, isImage), files: list(each.files, (file) => isText(file?.name) && isText(file.text)) };
      for (const [name, kind] of [["model", "string"], ["reasoning", "string"], ["note", "string"], ["finish", "string"], ["isFault", "boolean"], ["used", "number"]])
        if (typeof each[name] === kind) made[name] = each[name];
      if (made.note === "…" && !isRunning) made.note = "stopped"; // the page was closed during the answer
      const variants = depth < DEEPEST ? parseVariants(each.variants, depth) : null;
      return variants ? { ...made, variants } : made;
    });
  }

  function parseVariants(found, depth) {
    if (!Array.isArray(found?.tails) || found.tails[found.at] !== null) return null;
    const tails = found.tails.map((tail, at) => at === found.at ? null : parseMessages(tail, false, depth + 1));
    return tails.every((tail) => tail?.length !== 0) ? { at: found.at, tails } : null;
  }

  function read(id) {
    try {
      const stored = localStorage.getItem(KEPT + id), talk = parse(JSON.parse(stored));
      if (talk) seen.set(talk, stored);
      return talk;
    } catch { return null; }
  }

  // Returns a sentence if the browser's few megabytes are full, so that something is not kept, or if another tab has
  // gone on with the conversation, which then gets an id of its own.
  function keep(talk) {
    if (!talk.messages.length) return "";
    const found = localStorage.getItem(KEPT + talk.id), isOthers = found !== null && found !== seen.get(talk);
    if (isOthers) talk.id = create().id;
    const store = (messages) => {
      const text = JSON.stringify({ ...talk, messages });
      localStorage.setItem(KEPT + talk.id, text);
      seen.set(talk, text);
    };
    const isFull = "The browser's storage is full: this chat is kept", hint = "Export it, or delete others.";
    try { store(talk.messages); return isOthers ? "Another tab has gone on with this chat: this tab's is now a chat of its own." : ""; } catch { /* full */ }
    try { store(withoutImages(talk.messages)); return `${isFull} without its images. ${hint}`; } catch { /* full */ }
    return `${isFull} only until this page is closed or loaded again. ${hint}`;
  }

  const withoutImages = (messages) => messages.map(({ variants, ...message }) => ({
    ...message, images: [], ...(variants && { variants: { ...variants, tails: variants.tails.map((tail) => tail && withoutImages(tail)) } }),
  }));

  const remove = (talk) => localStorage.removeItem(KEPT + talk.id);

  // All conversations that are kept, with `shown` as this tab has it, the last one first.
  function all(shown) {
    const ids = Object.keys(localStorage).filter((name) => name.startsWith(KEPT)).map((name) => name.slice(KEPT.length));
    const others = ids.filter((id) => id !== shown.id).map(read);
    return [...others, shown].filter((talk) => talk?.messages.length).sort((a, b) => b.changed - a.changed);
  }

  const titleOf = ({ title, messages }) => title || messages[0].text.slice(0, 60) || messages[0].files?.[0]?.name || "image";

  // --- Variants ---
  // A variant of a message is another end of the conversation from its place on. The message that is shown there has
  // all of them in order, null for its own, which is the conversation itself.

  // Takes the message and what follows it out of the conversation, and returns the variants that it belongs to.
  function fold(talk, message) {
    const tail = talk.messages.splice(talk.messages.indexOf(message)), { at, tails } = message.variants ?? { at: 0, tails: [null] };
    delete message.variants;
    return { at, tails: tails.map((each, other) => other === at ? tail : each) };
  }

  // Makes room for a new variant of the message, and returns what the new message has as its variants.
  function branch(talk, message) {
    const { tails } = fold(talk, message);
    return { at: tails.length, tails: [...tails, null] };
  }

  function show(talk, at, tails) {
    const [first, ...others] = tails[at];
    if (tails.length > 1) first.variants = { at, tails: tails.map((tail, other) => other === at ? null : tail) };
    talk.messages = [...talk.messages, first, ...others];
  }

  function step(talk, message, by) {
    const { at, tails } = fold(talk, message);
    show(talk, (at + by + tails.length) % tails.length, tails);
  }

  // Without the message; the next one takes over its variants, or a variant takes its place.
  function removeMessage(talk, message) {
    const at = talk.messages.indexOf(message), next = talk.messages[at + 1], own = message.variants;
    if (own && !next) {
      const { tails } = fold(talk, message);
      show(talk, Math.max(0, own.at - 1), tails.toSpliced(own.at, 1));
      return;
    }
    talk.messages.splice(at, 1);
    const inner = next?.variants ?? { at: 0, tails: [null] };
    if (own) next.variants = { at: own.at + inner.at, tails: own.tails.toSpliced(own.at, 1, ...inner.tails) };
  }

  return { KEPT, RUNNING_MS, SETTINGS, NAMES, all, branch, create, isImage, keep, parse, read, remove, removeMessage, step, titleOf };
})();
