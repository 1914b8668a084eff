"use strict";
// The chat: one conversation for each tab, kept in the browser, answered by v1/chat/completions.
const chat = (() => {
  const KEPT = "vllm-cli chat ", MOST_KEPT = 50, DRAW_MS = 60;
  const SETTINGS = [["system", "system"], ["temperature", "temperature"], ["max-tokens", "maxTokens"]]; // field, member
  const drawn = new Map(); // elements of messages
  let talk = newTalk(), stream = null, pending = [];

  function newTalk() {
    return { id: crypto.getRandomValues(new Uint32Array(2)).join("-"), model: null, system: "", temperature: "", maxTokens: "", messages: [] };
  }

  // --- What is kept: in localStorage, a conversation under its id. ---

  function keep() {
    if (!talk.messages.length) return;
    sessionStorage.setItem("vllm-cli talk", talk.id);
    const store = (messages) => localStorage.setItem(KEPT + talk.id, JSON.stringify({ ...talk, messages, changed: Date.now() }));
    try { store(talk.messages); } catch { // the browser's few megabytes are full: without images
      try { store(talk.messages.map((message) => ({ ...message, images: [] }))); } catch { /* this tab only */ }
    }
    const found = kept();
    found.slice(MOST_KEPT).forEach(({ id }) => localStorage.removeItem(KEPT + id));
    listKept(found.slice(0, MOST_KEPT));
  }

  function readKept(id) {
    try {
      const found = JSON.parse(localStorage.getItem(KEPT + id));
      return Array.isArray(found?.messages) ? { ...newTalk(), ...found } : null;
    } catch {
      return null;
    }
  }

  function kept() {
    const ids = Object.keys(localStorage).filter((name) => name.startsWith(KEPT)).map((name) => name.slice(KEPT.length));
    return ids.map(readKept).filter((found) => found).sort((a, b) => b.changed - a.changed);
  }

  function listKept(found = kept()) {
    const titles = found.map(({ id, messages }) => new Option(messages[0]?.text.slice(0, 60) || "image", id, false, id === talk.id));
    const isNew = !titles.some((option) => option.value === talk.id);
    $("talks").replaceChildren(...(isNew ? [new Option("New chat", talk.id, false, true)] : []), ...titles);
    $("talks").parentElement.hidden = !titles.length;
  }

  function show(found) {
    stream?.abort();
    talk = found;
    sessionStorage.setItem("vllm-cli talk", talk.id);
    for (const [id, name] of SETTINGS) $(id).value = talk[name];
    if (talk.model && [...$("chat-model").options].some((option) => option.value === talk.model)) $("chat-model").value = talk.model;
    drawAll();
    listKept();
  }

  function exportTalk() {
    const text = talk.messages.map((message) => `## ${message.role}\n\n${message.text}\n`).join("\n");
    element("a", { href: URL.createObjectURL(new Blob([text])), download: "chat.md" }).click();
  }

  // --- Messages ---

  function drawAll() {
    drawn.clear();
    $("talk").replaceChildren(...talk.messages.map(draw));
    scroll();
  }

  function draw(message) {
    const text = element("div", { className: "text" }), reasoning = element("details", { hidden: true }, element("summary", {}, "Reasoning"), element("div", { className: "plain" }));
    const note = element("small", {}), buttons = element("span", {});
    const isUsers = message.role === "user", before = talk.messages.slice(0, talk.messages.indexOf(message)).findLast(({ role }) => role === "assistant");
    const name = element("b", { hidden: isUsers || before?.model === message.model }, message.model ?? "");
    const box = element("article", { className: `message ${message.role}`, ariaLabel: isUsers ? "You" : message.model }, name, reasoning, text, element("div", { className: "under" }, note, buttons));
    drawn.set(message, { text, reasoning, note, buttons });
    redraw(message, true);
    return box;
  }

  function redraw(message, isWhole) {
    const { text, reasoning, note, buttons } = drawn.get(message);
    const images = (message.images ?? []).map((url) => element("img", { src: url, alt: "attached image" }));
    text.replaceChildren(...images, ...(message.role === "user" ? [element("p", { className: "plain" }, message.text)] : drawMarkdown(message.text)));
    reasoning.hidden = !message.reasoning;
    reasoning.lastChild.textContent = message.reasoning ?? "";
    note.textContent = message.note ?? "";
    note.className = message.isFault ? "failed" : "";
    if (isWhole) buttons.replaceChildren(...actionsOf(message));
  }

  function actionsOf(message) {
    const action = (name, act) => button(name, () => { if (!stream) act(message); }, { className: `copy ${name}` });
    const copy = button("copy", (self) => copyText(self, message.text), { className: "copy" });
    if (message.role === "user") return [copy, action("edit", edit)];
    const isCut = message.text && message.finish !== "stop";
    return [copy, action("again", again), ...(isCut ? [action("continue", answer)] : [])];
  }

  const isAtEnd = () => innerHeight + scrollY >= document.body.scrollHeight - 80;
  const scroll = () => scrollTo(0, document.body.scrollHeight);

  // --- Sending ---

  function send() {
    const text = $("prompt").value.trim();
    if (stream || (!text && !pending.length)) return;
    push({ role: "user", text, images: pending });
    compose("", []);
    answer();
  }

  function compose(text, images) {
    $("prompt").value = text;
    pending = images;
    drawPending();
    $("prompt").focus();
  }

  const again = (message) => { if (cut(message)) answer(); };
  const edit = (message) => { if (cut(message)) compose(message.text, message.images ?? []); };

  // Removes a message and those after it. Asks if more than the message's answer is lost.
  function cut(message) {
    const at = talk.messages.indexOf(message), num = talk.messages.length - at - 1;
    if (num > 1 && !confirm(`Remove ${num} later messages?`)) return false;
    talk.messages.splice(at);
    drawAll();
    return true;
  }

  function push(message) {
    talk.messages.push(message);
    $("talk").append(draw(message));
    scroll();
    return message;
  }

  function requestOf(model, isContinued) {
    const content = ({ text, images }) => !images?.length ? text : [...images.map((url) => ({ type: "image_url", image_url: { url } })), { type: "text", text }];
    const system = talk.system.trim() ? [{ role: "system", content: talk.system }] : [];
    const said = talk.messages.filter(({ text, images }) => text || images?.length); // no failed answers
    const body = { model, messages: [...system, ...said.map((message) => ({ role: message.role, content: content(message) }))], stream: true, stream_options: { include_usage: true } };
    if (talk.temperature !== "") body.temperature = Number(talk.temperature);
    if (talk.maxTokens !== "") body.max_tokens = Number(talk.maxTokens);
    return JSON.stringify(isContinued ? { ...body, continue_final_message: true, add_generation_prompt: false } : body);
  }

  // Asks for an answer, or for the rest of the last one.
  async function answer(begun) {
    const model = $("chat-model").value, control = stream = new AbortController(), own = talk;
    talk.model = model;
    const body = requestOf(model, begun !== undefined), message = begun ?? push({ role: "assistant", model, text: "", reasoning: "" });
    Object.assign(message, { note: "…", isFault: false });
    redraw(message, true);
    keep();
    showSending();
    const begin = performance.now(), painter = paintLater(message);
    try {
      const response = await fetch("v1/chat/completions", { method: "POST", headers: { "Content-Type": "application/json", ...apiKey.headers() }, body, signal: control.signal });
      if (response.status === 401) showKey(true);
      if (!response.ok) throw new Error(await errorText(response));
      const { usage, firstAt, isComplete } = await readStream(response, message, painter);
      const seconds = (performance.now() - (firstAt ?? begin)) / 1000, count = usage?.completion_tokens ?? 0;
      if (!isComplete) throw new Error("The answer broke off: the server has closed the connection.");
      message.note = count ? `${count} tokens${count > 1 && seconds > 0 ? `, ${round((count - 1) / seconds)} tokens/s` : ""}` : "";
      if (message.finish === "length") message.note += ", ended at its most tokens";
    } catch (err) {
      const isStopped = control.signal.aborted;
      message.note = isStopped ? "stopped" : err instanceof TypeError ? "The server does not answer, or has closed the connection." : err.message;
      message.isFault = !isStopped;
    }
    painter.end();
    if (stream === control) stream = null;
    if (own === talk) { redraw(message, true); keep(); }
    showSending();
  }

  // Server-sent events; comments, which a router sends while the model starts, are skipped.
  async function readStream(response, message, painter) {
    const seen = { usage: null, firstAt: null, isComplete: false }, reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
    for (let parts = []; ;) {
      const { done, value } = await reader.read();
      if (done) return seen;
      const [first, ...others] = value.split("\n");
      parts.push(first);
      for (const next of others) {
        readLine(parts.join("").trim(), message, seen);
        parts = [next];
      }
      painter.paint();
    }
  }

  function readLine(line, message, seen) {
    if (!line.startsWith("data:")) return;
    const data = line.slice(5).trim();
    if (data === "[DONE]") { seen.isComplete = true; return; }
    const event = JSON.parse(data);
    if (event.error) throw new Error(event.error.message ?? "The server reports an error.");
    seen.usage = event.usage ?? seen.usage;
    const choice = event.choices?.[0], delta = choice?.delta ?? {};
    const text = delta.content ?? "", reasoning = delta.reasoning ?? delta.reasoning_content ?? "";
    if ((text || reasoning) && seen.firstAt === null) { seen.firstAt = performance.now(); message.note = ""; }
    message.text += text;
    message.reasoning += reasoning;
    message.finish = choice?.finish_reason ?? message.finish;
  }

  // A long answer is drawn less often: the time for drawing stays a small part.
  function paintLater(message) {
    let timer = 0, took = 0;
    const now = () => {
      const begin = performance.now(), follows = isAtEnd();
      timer = 0;
      redraw(message, false);
      if (follows) scroll();
      took = performance.now() - begin;
    };
    return {
      paint: () => { if (!timer && drawn.has(message)) timer = setTimeout(now, Math.max(DRAW_MS, 5 * took)); },
      end: () => clearTimeout(timer),
    };
  }

  function showSending() {
    $("send").hidden = stream !== null;
    $("stop").hidden = stream === null;
    $("talk").setAttribute("aria-busy", String(stream !== null)); // a screen reader reads the whole answer
    if (stream === null && document.activeElement === document.body) $("prompt").focus();
  }

  function showKey(isRefused) {
    if ($("key-form").hidden || isRefused) $("settings").open = isRefused || !apiKey.get();
    $("key-form").hidden = false;
    if (isRefused) $("key").focus();
  }

  // --- Images ---

  function addImages(files) {
    for (const file of [...files].filter(({ type }) => type.startsWith("image/"))) {
      const reader = new FileReader();
      reader.addEventListener("load", () => { pending.push(reader.result); drawPending(); });
      reader.readAsDataURL(file);
    }
  }

  function drawPending() {
    $("pending").replaceChildren(...pending.map((url, at) => {
      const remove = button("×", () => { pending.splice(at, 1); drawPending(); }, { ariaLabel: `remove image ${at + 1}` });
      return element("span", {}, element("img", { src: url, alt: `image ${at + 1}` }), remove);
    }));
  }

  // --- The status of the server ---

  function showModels(models) {
    const select = $("chat-model"), names = models.map((model) => model.id);
    const isSame = names.length === select.options.length && names.every((name, at) => select.options[at].value === name);
    if (!isSame) {
      const wanted = select.value || talk.model;
      select.replaceChildren(...names.map((name) => new Option(name, name, false, name === wanted)));
    }
    select.parentElement.hidden = names.length < 2;
    const model = models.find(({ id }) => id === select.value);
    $("attach").parentElement.hidden = model?.takes_images === false;
    return model;
  }

  function begin() {
    for (const [id, name] of SETTINGS) $(id).addEventListener("input", () => { talk[name] = $(id).value; keep(); });
    $("key").value = apiKey.get();
    $("key-form").addEventListener("submit", (event) => event.preventDefault());
    $("key").addEventListener("input", () => apiKey.set($("key").value.trim()));
    $("chat-form").addEventListener("submit", (event) => { event.preventDefault(); send(); });
    $("stop").addEventListener("click", () => stream?.abort());
    $("new-talk").addEventListener("click", () => { show({ ...newTalk(), system: talk.system, temperature: talk.temperature, maxTokens: talk.maxTokens }); $("prompt").focus(); });
    $("export-talk").addEventListener("click", exportTalk);
    $("delete-talk").addEventListener("click", () => { if (confirm("Delete this conversation?")) { localStorage.removeItem(KEPT + talk.id); show(newTalk()); } });
    $("talks").addEventListener("change", () => show(readKept($("talks").value) ?? newTalk()));
    $("attach").addEventListener("change", () => { addImages($("attach").files); $("attach").value = ""; });
    $("prompt").addEventListener("paste", (event) => addImages(event.clipboardData.files));
    $("prompt").addEventListener("keydown", (event) => {
      if (event.key === "Enter" && !event.shiftKey && !event.isComposing) { event.preventDefault(); send(); }
    });
    document.addEventListener("keydown", (event) => { if (event.key === "Escape") stream?.abort(); });
    addEventListener("storage", (event) => {
      if (event.key === KEPT + talk.id && event.newValue && !stream) show(readKept(talk.id) ?? talk); // another tab has gone on with it
      else listKept();
    });
    show(readKept(sessionStorage.getItem("vllm-cli talk")) ?? talk);
  }

  return { begin, showModels, showKey };
})();
