"use strict";
// The chat: one conversation for each tab, answered by v1/chat/completions.
const chat = (() => {
  const DRAFT = "vllm-cli draft", DRAW_MS = 60, MOST_FILE_BYTES = 1 << 20;
  const drawn = new Map(); // elements of messages
  const lengths = new Map(); // context lengths of models, in tokens
  let talk = talks.create(), stream = null, isWaiting = false, takesImages = true, refresh = null;
  let pending = []; // what the next message attaches: an image as its address, a text file with name and text
  let isLeaving = false; // whether the browser ends requests because it leaves the page or loads it again
  let edited = null; // the message that the next one replaces, with what the field had before

  const say = (text) => { $("notice").textContent = text; };

  function keep(own = talk) {
    const fault = talks.keep(own);
    if (fault) say(fault);
    if (own === talk) sessionStorage.setItem("vllm-cli talk", talk.id);
  }

  function open(found) {
    stream?.abort();
    if (edited) endEdit();
    talk = found;
    sessionStorage.setItem("vllm-cli talk", talk.id);
    for (const [id, name] of talks.SETTINGS) $(id).value = talk[name];
    if (talk.model && [...$("chat-model").options].some((option) => option.value === talk.model)) $("chat-model").value = talk.model;
    drawAll();
    $("prompt").focus();
  }

  // A draft stays in its tab. Images that are too large for the browser's storage are named when the draft is back.
  function keepDraft() {
    if (stream) keep();
    const draft = { text: $("prompt").value, pending, edited: edited && { ...edited, at: talk.messages.indexOf(edited.message), message: null } };
    const store = (parts) => sessionStorage.setItem(DRAFT, JSON.stringify({ ...draft, ...parts }));
    try { store(); } catch { store({ pending: [], edited: null, num: pending.length }); }
  }

  function readDraft() {
    const draft = JSON.parse(sessionStorage.getItem(DRAFT) ?? "null");
    if (!draft) return;
    const message = talk.messages[draft.edited?.at];
    if (message) beginEdit({ ...draft.edited, message });
    compose(draft.text, draft.pending);
    if (draft.num) say(`The draft's ${draft.num} files were too large for the browser's storage.`);
  }

  // --- Messages ---

  function drawAll() {
    drawn.clear();
    $("talk").replaceChildren(...talk.messages.map(draw));
    showContext();
    scroll();
  }

  function draw(message) {
    const text = element("div", { className: "text" }), reasoning = element("details", { hidden: true }, element("summary", {}, "Reasoning"), element("div", { className: "plain" }));
    const note = element("small", {}), buttons = element("span", {});
    const isUsers = message.role === "user", before = talk.messages.slice(0, talk.messages.indexOf(message)).findLast(({ role }) => role === "assistant");
    const name = element("b", { hidden: isUsers || before?.model === message.model }, message.model ?? "");
    const label = `${isUsers ? "You" : message.model}, message ${numberOf(message)}`;
    const box = element("article", { className: `message ${message.role}`, ariaLabel: label }, name, reasoning, text, element("div", { className: "under" }, note, buttons));
    drawn.set(message, { box, text, reasoning, note, buttons });
    redraw(message, true);
    return box;
  }

  function redraw(message, isWhole) {
    const { text, reasoning, note, buttons } = drawn.get(message);
    const images = (message.images ?? []).map((url) => element("img", { src: url, alt: "attached image" }));
    const files = (message.files ?? []).map((file) => element("details", {}, element("summary", {}, file.name), element("p", { className: "plain" }, file.text)));
    text.replaceChildren(...images, ...files, ...(message.role === "user" ? [element("p", { className: "plain" }, message.text)] : drawMarkdown(message.text)));
    reasoning.hidden = !message.reasoning;
    reasoning.lastChild.textContent = message.reasoning ?? "";
    note.textContent = message.note ?? "";
    note.className = message.isFault ? "failed" : "";
    if (isWhole) buttons.replaceChildren(...actionsOf(message));
  }

  const numberOf = (message) => talk.messages.indexOf(message) + 1;

  function actionsOf(message) {
    const named = (name, act) => button(name, act, { className: `copy ${name}`, ariaLabel: `${name} message ${numberOf(message)}` });
    const action = (name, act) => named(name, () => { if (!stream) act(message); });
    const copy = named("copy", (self) => copyText(self, message.text));
    if (message.role === "user") return [copy, action("edit", edit)];
    const isCut = message.text && message.finish !== "stop";
    return [copy, action("again", again), ...(isCut ? [action("continue", answer)] : [])];
  }

  const isAtEnd = () => innerHeight + scrollY >= document.body.scrollHeight - 80;
  const scroll = () => scrollTo(0, document.body.scrollHeight);

  // --- Sending ---

  function send() {
    const text = $("prompt").value.trim(), isImage = (each) => typeof each === "string";
    if (stream || (!text && !pending.length)) return;
    const message = { role: "user", text, images: pending.filter(isImage), files: pending.filter((each) => !isImage(each)) };
    compose("", []);
    if (edited) { cut(edited.message); endEdit(); }
    push(message);
    answer();
  }

  function compose(text, attached) {
    $("prompt").value = text;
    pending = attached;
    say("");
    drawPending();
    $("prompt").focus();
  }

  // Removes a message and those after it.
  function cut(message) {
    talk.messages.splice(talk.messages.indexOf(message));
    drawAll();
  }

  // Asks if more than the answer is lost.
  function again(message) {
    const num = talk.messages.length - numberOf(message);
    if (num && !confirm(`Remove ${num} later messages?`)) return;
    if (edited) endEdit();
    cut(message);
    answer();
  }

  function edit(message) {
    beginEdit({ message, text: edited?.text ?? $("prompt").value, pending: edited?.pending ?? pending });
    compose(message.text, [...(message.images ?? []), ...(message.files ?? [])]);
  }

  function beginEdit(begun) {
    edited = begun;
    const at = talk.messages.indexOf(edited.message), num = talk.messages.length - at - 1;
    talk.messages.forEach((message, each) => drawn.get(message).box.classList.toggle("replaced", each >= at));
    $("editing").firstChild.textContent = `Sending replaces message ${at + 1}${num ? ` and removes ${num} after it` : ""}. Escape cancels.`;
    $("editing").hidden = false;
  }

  function endEdit() {
    const { text, pending } = edited;
    edited = null;
    $("editing").hidden = true;
    for (const { box } of drawn.values()) box.classList.remove("replaced");
    compose(text, pending);
  }

  function push(message) {
    talk.messages.push(message);
    $("talk").append(draw(message));
    scroll();
    return message;
  }

  // Questions without an answer are left out: what the server has refused once, it would refuse each time.
  function requestOf(model, isContinued) {
    const content = (message) => !message.images?.length ? talks.textOf(message) : [...message.images.map((url) => ({ type: "image_url", image_url: { url } })), { type: "text", text: talks.textOf(message) }];
    const system = talk.system.trim() ? [{ role: "system", content: talk.system }] : [];
    const isAnswered = (next) => !next || (next.role === "assistant" && next.text);
    const said = talk.messages.filter(({ role, text }, at) => role === "user" ? isAnswered(talk.messages[at + 1]) : text);
    const body = { model, messages: [...system, ...said.map((message) => ({ role: message.role, content: content(message) }))], stream: true, stream_options: { include_usage: true } };
    for (const [, name, member, read] of talks.SETTINGS) if (member && talk[name].trim() !== "") body[member] = read(talk[name]);
    return JSON.stringify(isContinued ? { ...body, continue_final_message: true, add_generation_prompt: false } : body);
  }

  // Asks for an answer, or for the rest of the last one.
  async function answer(begun) {
    const model = $("chat-model").value, control = stream = new AbortController(), own = talk;
    Object.assign(talk, { model, changed: Date.now() });
    const body = requestOf(model, begun !== undefined), message = begun ?? push({ role: "assistant", model, text: "", reasoning: "" });
    Object.assign(message, { note: "…", isFault: false });
    redraw(message, true);
    isWaiting = true;
    setTimeout(refresh, 100);
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
      if (usage) message.used = usage.prompt_tokens + usage.completion_tokens;
      if (message.finish === "length") message.note += ", stopped at the token limit";
    } catch (err) {
      const isStopped = control.signal.aborted || (isLeaving && err instanceof TypeError);
      message.note = isStopped ? "stopped" : err instanceof TypeError ? "The server does not answer, or has closed the connection." : err.message;
      message.isFault = !isStopped;
    }
    if (!message.text) message.note = `${message.note.replace(/(?<=[^.])$/, ".")} The next messages are sent without this question.`;
    painter.end();
    if (stream === control) { stream = null; isWaiting = false; }
    keep(own);
    if (own === talk) {
      const follows = isAtEnd();
      redraw(message, true);
      showContext();
      if (follows) scroll();
    }
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
    if ((text || reasoning) && seen.firstAt === null) { seen.firstAt = performance.now(); message.note = ""; isWaiting = false; }
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

  // After the last answer, how many tokens the conversation has of those that the model can take.
  async function showContext() {
    const own = talk, model = $("chat-model").value, used = talk.messages.findLast((message) => message.used)?.used;
    $("context").textContent = "";
    if (!used || !model) return;
    if (!lengths.has(model)) {
      const answer = await fetch("v1/models", { headers: apiKey.headers() }).then((answer) => answer.json()).catch(() => null);
      for (const { id, max_model_len: length } of answer?.data ?? []) if (length) lengths.set(id, length);
    }
    const of = lengths.has(model) ? ` of ${lengths.get(model).toLocaleString("en")}` : "";
    if (own === talk) $("context").textContent = `Context: ${used.toLocaleString("en")}${of} tokens`;
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

  // --- Attached images and text files ---

  async function attach(files) {
    for (const file of files) {
      const isImage = file.type.startsWith("image/"), text = isImage || file.size > MOST_FILE_BYTES ? "" : await file.text();
      if (isImage && !takesImages) say(`${file.name}: the model takes no images.`);
      else if (isImage) pending.push(await readImage(file));
      else if (file.size > MOST_FILE_BYTES) say(`${file.name} is larger than 1 MiB.`);
      else if (/[\0\uFFFD]/.test(text)) say(`${file.name} is no text in UTF-8.`);
      else pending.push({ name: file.name, text });
    }
    drawPending();
  }

  const readImage = (file) => new Promise((resolve) => {
    const reader = new FileReader();
    reader.addEventListener("load", () => resolve(reader.result));
    reader.readAsDataURL(file);
  });

  function drawPending() {
    $("pending").replaceChildren(...pending.map((each, at) => {
      const name = each.name ?? `image ${at + 1}`;
      const remove = button("×", () => { pending = pending.filter((_, other) => other !== at); drawPending(); }, { ariaLabel: `remove ${name}` });
      return element("span", {}, each.name ?? element("img", { src: each, alt: name }), remove);
    }));
  }

  // --- The status of the server ---

  function showModels(models) {
    const select = $("chat-model"), names = models.map((model) => model.id);
    const isSame = names.length === select.options.length && names.every((name, at) => select.options[at].value === name);
    if (!isSame) {
      const wanted = select.value || talk.model;
      select.replaceChildren(...names.map((name) => new Option(name, name, false, name === wanted)));
      showContext();
    }
    select.parentElement.hidden = names.length < 2;
    const model = models.find(({ id }) => id === select.value);
    select.title = select.value;
    takesImages = model?.takes_images !== false;
    return model;
  }

  function begin(refreshStatus) {
    refresh = refreshStatus;
    for (const [id, name] of talks.SETTINGS) $(id).addEventListener("input", () => { talk[name] = $(id).value; keep(); });
    $("key").value = apiKey.get();
    $("key-form").addEventListener("submit", (event) => event.preventDefault());
    $("key").addEventListener("input", () => apiKey.set($("key").value.trim()));
    $("chat-form").addEventListener("submit", (event) => { event.preventDefault(); send(); });
    $("stop").addEventListener("click", () => stream?.abort());
    $("new-talk").addEventListener("click", () => open(talks.create(talk)));
    $("cancel-edit").addEventListener("click", endEdit);
    $("chat-model").addEventListener("change", showContext);
    $("attach").addEventListener("change", () => { attach([...$("attach").files]); $("attach").value = ""; });
    $("prompt").addEventListener("paste", (event) => attach([...event.clipboardData.files]));
    $("prompt").addEventListener("keydown", (event) => {
      if (event.key === "Enter" && !event.shiftKey && !event.isComposing) { event.preventDefault(); send(); }
    });
    document.addEventListener("keydown", (event) => {
      if (event.key !== "Escape" || $("talks").open) return;
      if (edited) endEdit(); else stream?.abort();
    });
    addEventListener("beforeunload", () => { isLeaving = true; setTimeout(() => { isLeaving = false; }, 5000); });
    for (const event of ["pagehide", "visibilitychange"]) addEventListener(event, keepDraft);
    addEventListener("storage", (event) => {
      if (event.key === talks.KEPT + talk.id && event.newValue && !stream && !edited) open(talks.read(talk.id) ?? talk); // another tab has gone on with it
    });
    talks.begin({ current: () => talk, open });
    open(talks.read(sessionStorage.getItem("vllm-cli talk")) ?? talk);
    readDraft();
  }

  return { begin, showModels, showKey, isWaiting: () => isWaiting };
})();
