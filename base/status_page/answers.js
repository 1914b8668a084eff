"use strict";
// What the page asks of v1/chat/completions, and how it reads the answer's stream.
const answers = (() => {
  // The messages that are sent. Questions without an answer are left out: what the server has refused once, it would
  // refuse each time.
  function messagesOf(talk) {
    const content = (message) => {
      const text = talkFiles.textOf(message);
      return !message.images?.length ? text : [...message.images.map((url) => ({ type: "image_url", image_url: { url } })), { type: "text", text }];
    };
    const system = talk.system.trim() ? [{ role: "system", content: talk.system }] : [];
    const isAnswered = (next) => !next || (next.role === "assistant" && next.text);
    const said = talk.messages.filter(({ role, text }, at) => role === "user" ? isAnswered(talk.messages[at + 1]) : text);
    return [...system, ...said.map((message) => ({ role: message.role, content: content(message) }))];
  }

  function requestOf(talk, model, messages, limit, isContinued) {
    const body = { model, messages, stream: true, stream_options: { include_usage: true } };
    if (limit) body.max_tokens = limit;
    for (const [, name, member, read] of talks.SETTINGS) if (member && talk[name].trim() !== "") body[member] = read(talk[name]);
    return JSON.stringify(isContinued ? { ...body, continue_final_message: true, add_generation_prompt: false } : body);
  }

  // Server-sent events; comments, which a router sends while the model starts, are skipped. Adds to the message, and
  // calls `painted` after each part.
  async function readStream(response, message, painted) {
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
      painted(seen);
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
    if ((text || reasoning) && seen.firstAt === null) { seen.firstAt = performance.now(); message.note = "…"; }
    message.text += text;
    message.reasoning += reasoning;
    message.finish = choice?.finish_reason ?? message.finish;
  }

  return { messagesOf, readStream, requestOf };
})();
