"use strict";
// The chat: one conversation for each tab, answered by v1/chat/completions.
const chat = (() => {
  const DRAFT = "vllm-cli draft", KEEP_MS = 1000;
  let talk = talks.create(), stream = null, isWaiting = false, takesImages = true, refresh = null;
  let answering = null; // the message that the stream writes
  let isQueued = false; // whether the field's text is sent once the answer is complete
  let isLeaving = false; // whether the browser ends requests because it leaves the page or loads it again
  let edited = null; // the message that the next one replaces, with what the field had before
  let following = 0; // the timer of an answer in another tab

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
    follow();
    $("prompt").focus();
  }

  function drawAll() {
    messageList.drawAll(talk, actions);
    showContext();
  }

  // A draft stays in its tab. Images that are too large for the browser's storage are named when the draft is back.
  function keepDraft() {
    if (stream) keep();
    const draft = { text: $("prompt").value, pending: attachments.all(), edited: edited && { ...edited, at: talk.messages.indexOf(edited.message), message: null } };
    const store = (parts) => sessionStorage.setItem(DRAFT, JSON.stringify({ ...draft, ...parts }));
    try { store(); } catch { store({ pending: [], edited: null, num: draft.pending.length }); }
  }

  function readDraft() {
    const draft = JSON.parse(sessionStorage.getItem(DRAFT) ?? "null");
    if (!draft) return;
    const message = talk.messages[draft.edited?.at];
    if (message) beginEdit({ ...draft.edited, message });
    compose(draft.text, draft.pending);
    if (draft.num) say(`The draft's ${draft.num} files were too large for the browser's storage.`);
  }

  // --- Other tabs ---

  // Another tab has written a conversation, or deleted it.
  function readOthers({ key, newValue }) {
    if (key !== talks.KEPT + talk.id || stream || edited) return;
    const place = scrollY, follows = messageList.isAtEnd();
    open((newValue && talks.read(talk.id)) ?? talks.create(talk));
    if (!newValue) say("This chat was deleted in another tab.");
    if (!follows) scrollTo(0, place);
  }

  // An answer in another tab is complete, or goes on, or its tab was closed.
  function follow() {
    clearTimeout(following);
    if (!stream && talk.messages.at(-1)?.note === "…") following = setTimeout(() => { if (!stream && !edited) open(talks.read(talk.id) ?? talk); }, talks.RUNNING_MS);
  }

  // --- Sending ---

  function send() {
    const text = $("prompt").value.trim();
    if (!text && !attachments.all().length) return;
    if (stream) return queue(true);
    const message = { role: "user", text, images: attachments.images(), files: attachments.files() };
    compose("", []);
    if (edited) {
      message.variants = talks.branch(talk, edited.message);
      endEdit();
      drawAll();
    }
    push(message);
    answer();
  }

  function queue(isWanted) {
    isQueued = isWanted;
    say(isWanted ? "This is sent once the answer is complete. Escape cancels that." : "");
  }

  function compose(text, attached) {
    $("prompt").value = text;
    attachments.set(attached);
    say("");
    $("prompt").focus();
  }

  // What the buttons below a message do.
  const whenIdle = (act) => (message, by) => { if (!stream) act(message, by); };
  const actions = {
    edit: whenIdle((message) => {
      beginEdit({ message, text: edited?.text ?? $("prompt").value, pending: edited?.pending ?? attachments.all() });
      compose(message.text, [...(message.images ?? []), ...(message.files ?? [])]);
    }),
    again: whenIdle((message) => {
      if (edited) endEdit();
      const isEmpty = !message.text && message === talk.messages.at(-1), variants = isEmpty ? message.variants : talks.branch(talk, message);
      if (isEmpty) talk.messages.pop();
      drawAll();
      answer(null, variants);
    }),
    continue: whenIdle((message) => answer(message)),
    step: whenIdle((message, by) => change(() => talks.step(talk, message, by))),
    delete: whenIdle((message) => { if (confirm(`Delete message ${messageList.numberOf(message)}?`)) change(() => talks.removeMessage(talk, message)); }),
  };

  function change(act) {
    if (edited) endEdit();
    const place = scrollY;
    act();
    talk.changed = Date.now();
    if (talk.messages.length) keep(); else talks.remove(talk);
    drawAll();
    scrollTo(0, place);
  }

  function beginEdit(begun) {
    edited = begun;
    const at = talk.messages.indexOf(edited.message);
    messageList.mark(at);
    $("editing").firstChild.textContent = `Sending makes another variant of message ${at + 1}, and keeps this one. Escape cancels.`;
    $("editing").hidden = false;
  }

  function endEdit() {
    const { text, pending } = edited;
    edited = null;
    $("editing").hidden = true;
    messageList.mark(Infinity);
    compose(text, pending);
  }

  function push(message) {
    talk.messages.push(message);
    messageList.append(message);
    return message;
  }

  // Asks for an answer, or for the rest of `begun`.
  async function answer(begun, variants) {
    const model = $("chat-model").value, control = stream = new AbortController(), own = talk, messages = answers.messagesOf(talk);
    Object.assign(talk, { model, changed: Date.now() });
    const message = answering = begun ?? push({ role: "assistant", model, text: "", reasoning: "", ...(variants && { variants }) });
    Object.assign(message, { note: "…", isFault: false });
    messageList.redrawWhole(message);
    isWaiting = true;
    setTimeout(refresh, 100);
    keep();
    showSending();
    const begin = performance.now(), painter = messageList.paintLater(message), keeper = keepNow(own);
    try {
      const limit = contexts.limitOf(await contexts.lengthOf(model)), body = answers.requestOf(own, model, messages, limit, Boolean(begun));
      const response = await fetch("v1/chat/completions", { method: "POST", headers: { "Content-Type": "application/json", ...apiKey.headers() }, body, signal: control.signal });
      if (response.status === 401) showKey(true);
      if (!response.ok) throw new Error(await errorText(response));
      const { usage, firstAt, isComplete } = await answers.readStream(response, message, ({ firstAt }) => {
        if (firstAt !== null && stream === control) isWaiting = false;
        painter.paint();
        keeper();
      });
      const seconds = (performance.now() - (firstAt ?? begin)) / 1000, count = usage?.completion_tokens ?? 0;
      if (!isComplete) throw new Error("The answer broke off: the server has closed the connection.");
      message.note = count ? `${count} tokens${count > 1 && seconds > 0 ? `, ${round((count - 1) / seconds)} tokens/s` : ""}` : "";
      if (usage) message.used = usage.prompt_tokens + usage.completion_tokens;
      if (message.finish === "length") message.note += ", stopped at the token limit (Settings)";
    } catch (err) {
      const isStopped = control.signal.aborted || (isLeaving && err instanceof TypeError);
      message.note = isStopped ? "stopped" : err instanceof TypeError ? "The server does not answer, or has closed the connection." : err.message;
      message.isFault = !isStopped;
    }
    const isFaulty = message.isFault || message.note === "stopped";
    if (!message.text) message.note = `${message.note.replace(/(?<=[^.])$/, ".")} The next messages are sent without this question.`;
    painter.end();
    if (stream === control) { stream = answering = null; isWaiting = false; }
    own.changed = Date.now();
    keep(own);
    if (own === talk) {
      messageList.redrawWhole(message);
      showContext();
    }
    showSending();
    if (isQueued && !stream) sendQueued(own === talk && !isFaulty);
  }

  function sendQueued(isWanted) {
    queue(false);
    if (isWanted) send(); else say("Not sent: the answer before it is not complete.");
  }

  // Keeps the answer while it is written, for other tabs and in case that this one ends; a long one less often.
  function keepNow(own) {
    let next = 0;
    return () => {
      const begin = performance.now();
      if (begin < next || own !== talk) return;
      own.changed = Date.now();
      keep(own);
      const end = performance.now();
      next = end + Math.max(KEEP_MS, 20 * (end - begin));
    };
  }

  // How many tokens the next answer may have, and the conversation has after its last one.
  async function showContext() {
    const own = talk, model = $("chat-model").value, used = talk.messages.findLast((message) => message.used)?.used;
    $("context").textContent = "";
    const length = await contexts.lengthOf(model);
    if (own !== talk || model !== $("chat-model").value) return;
    $("max-tokens").placeholder = contexts.limitOf(length) ?? "the server's";
    if (used && model) $("context").textContent = `Context: ${used.toLocaleString("en")}${length ? ` of ${length.toLocaleString("en")}` : ""} tokens`;
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

  const attach = (files) => attachments.add(files, takesImages, say);

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
      if (isQueued) queue(false); else if (edited) endEdit(); else stream?.abort();
    });
    addEventListener("beforeunload", () => { isLeaving = true; setTimeout(() => { isLeaving = false; }, 5000); });
    addEventListener("pagehide", () => { if (answering) answering.note = "stopped"; });
    for (const event of ["pagehide", "visibilitychange"]) addEventListener(event, keepDraft);
    addEventListener("storage", readOthers);
    talkList.begin({ current: () => talk, open });
    open(talks.read(sessionStorage.getItem("vllm-cli talk")) ?? talk);
    readDraft();
  }

  return { begin, showModels, showKey, isWaiting: () => isWaiting };
})();
