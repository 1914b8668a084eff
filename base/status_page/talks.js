"use strict";
// The conversations that this browser keeps, each in localStorage under its id, and the dialog that lists them.
const talks = (() => {
  const KEPT = "vllm-cli chat ", lines = (text) => text.split("\n").filter((line) => line);
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
  let page = null; // the chat: `current` returns the conversation that it shows, `open` shows another

  function create(settings = {}) {
    const texts = Object.fromEntries(NAMES.map((name) => [name, settings[name] ?? ""]));
    return { id: crypto.getRandomValues(new Uint32Array(2)).join("-"), title: "", model: null, ...texts, changed: Date.now(), messages: [] };
  }

  // A conversation as a file or an earlier version of the page has written it. What is missing or misfits gets its default.
  function parse(found) {
    if (!Array.isArray(found?.messages)) return null;
    const made = create();
    for (const name of ["id", "title", "model", "changed", ...NAMES]) if (typeof found[name] === typeof (made[name] ?? "")) made[name] = found[name];
    const isMessage = (each) => ["user", "assistant"].includes(each?.role) && isText(each.text);
    made.messages = list(found.messages, isMessage).map((each) => ({
      ...each,
      images: list(each.images, isImage),
      files: list(each.files, (file) => isText(file?.name) && isText(file.text)),
      note: each.note === "…" ? "stopped" : each.note, // the page was closed during the answer
    }));
    return made;
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
    try { store(talk.messages.map((message) => ({ ...message, images: [] }))); return `${isFull} without its images. ${hint}`; } catch { /* full */ }
    return `${isFull} only until this page is closed or loaded again. ${hint}`;
  }

  function all() {
    const ids = Object.keys(localStorage).filter((name) => name.startsWith(KEPT)).map((name) => name.slice(KEPT.length));
    const shown = page.current(), others = ids.filter((id) => id !== shown.id).map(read);
    return [...others, shown].filter((talk) => talk?.messages.length).sort((a, b) => b.changed - a.changed);
  }

  const titleOf = ({ title, messages }) => title || messages[0].text.slice(0, 60) || messages[0].files?.[0]?.name || "image";

  // A message's text, with its files before it, each within a fence that is longer than any in the file.
  function textOf({ text, files = [] }) {
    const fenced = files.map((file) => {
      const fence = "`".repeat(Math.max(2, ...(file.text.match(/`+/g) ?? []).map(({ length }) => length)) + 1);
      return `${file.name}:\n${fence}\n${file.text}\n${fence}`;
    });
    return [...fenced, text].join("\n\n");
  }

  function toMarkdown(talk) {
    const facts = { Model: talk.model, Date: new Date(talk.changed).toLocaleString("sv"), "System prompt": talk.system };
    const lines = Object.entries(facts).filter(([, value]) => value).map(([name, value]) => `${name}: ${value}\n`);
    return [`# ${titleOf(talk)}\n`, ...lines, ...talk.messages.map((message) => `## ${message.role}\n\n${textOf(message)}\n`)].join("\n");
  }

  function download(text, name) {
    element("a", { href: URL.createObjectURL(new Blob([text])), download: name }).click();
  }

  // --- The dialog ---

  const say = (text) => { $("talks-notice").textContent = text; };

  function draw() {
    const wanted = $("search").value.toLowerCase(), isWanted = (text) => text.toLowerCase().includes(wanted);
    const found = all().filter((talk) => [titleOf(talk), ...talk.messages.map(({ text }) => text)].some(isWanted));
    $("talk-list").replaceChildren(...found.map(drawRow));
    if (!found.length) $("talk-list").append(element("li", {}, wanted ? "No chat has this text." : "None yet."));
  }

  function drawRow(talk) {
    const title = titleOf(talk), isCurrent = talk.id === page.current().id;
    const open = button(title, () => { $("talks").close(); if (!isCurrent) page.open(talk); }, { className: "title", ariaCurrent: String(isCurrent) });
    const action = (name, act) => button(name, () => act(talk), { className: "copy", ariaLabel: `${name} “${title}”` });
    const facts = element("small", {}, `${talk.messages.length} messages, ${new Date(talk.changed).toLocaleDateString()}`);
    return element("li", {}, open, facts, action("rename", rename), action("export", () => download(toMarkdown(talk), "chat.md")), action("delete", remove));
  }

  function rename(talk) {
    const title = prompt("Name of the chat", titleOf(talk))?.trim();
    if (title) { talk.title = title; changed(keep(talk)); }
  }

  function remove(talk) {
    if (!confirm(`Delete “${titleOf(talk)}”?`)) return;
    localStorage.removeItem(KEPT + talk.id);
    if (talk.id === page.current().id) { talk.messages = []; page.open(create(talk)); }
    changed("Deleted.");
  }

  function changed(text) {
    say(text);
    draw();
    $("search").focus();
  }

  // Reads what `export all` has written. A conversation that this browser has already is not added again.
  async function importFile(file) {
    const found = await file.text().then(JSON.parse).catch(() => null), fit = [found].flat().map(parse).filter((talk) => talk?.messages.length);
    if (!fit.length) return say(`${file.name} has no chats. Import reads what “export all” has written.`);
    const known = new Map(all().map((talk) => [talk.id, JSON.stringify(parse(talk).messages)]));
    const fresh = fit.filter((talk) => known.get(talk.id) !== JSON.stringify(talk.messages));
    const numMisfits = fresh.filter((talk) => keep(known.has(talk.id) ? { ...talk, id: create().id } : talk)).length;
    const fault = numMisfits ? ` The browser's storage is full: ${numMisfits} lack images or are not imported.` : "";
    changed(`${fresh.length} of ${fit.length} chats were new.${fault}`);
  }

  function begin(shown) {
    page = shown;
    $("list-talks").addEventListener("click", () => { $("search").value = ""; say(""); draw(); $("talks").showModal(); });
    $("close-talks").addEventListener("click", () => $("talks").close());
    $("search").addEventListener("input", draw);
    addEventListener("storage", () => { if ($("talks").open) draw(); });
    $("export-talks").addEventListener("click", () => download(JSON.stringify(all()), "chats.json"));
    $("import-talks").addEventListener("change", () => { importFile($("import-talks").files[0]); $("import-talks").value = ""; });
  }

  return { KEPT, SETTINGS, begin, create, read, keep, textOf };
})();
