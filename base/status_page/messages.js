"use strict";
// The messages of the conversation that is shown, as elements.
const messageList = (() => {
  const DRAW_MS = 60;
  const drawn = new Map(); // message -> its elements
  let talk = null, act = null; // what the buttons below a message do: name -> function of the message

  function drawAll(shown, actions) {
    talk = shown;
    act = actions;
    drawn.clear();
    $("talk").replaceChildren(...talk.messages.map(draw));
    scroll();
  }

  function append(message) {
    $("talk").append(draw(message));
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
    if (isWhole) buttons.replaceChildren(...variantsOf(message), ...actionsOf(message));
  }

  const numberOf = (message) => talk.messages.indexOf(message) + 1;

  const named = (name, message, run, text = name) => button(text, run, { className: `copy ${name.split(" ")[0]}`, ariaLabel: `${name} message ${numberOf(message)}` });

  function actionsOf(message) {
    const copy = named("copy", message, (self) => copyText(self, message.text)), isCut = message.text && message.finish !== "stop";
    const names = message.role === "user" ? ["edit", "delete"] : ["again", ...(isCut ? ["continue"] : []), "delete"];
    return [copy, ...names.map((name) => named(name, message, () => act[name](message)))];
  }

  function variantsOf(message) {
    if (!message.variants) return [];
    const { at, tails } = message.variants, step = (name, by, text) => named(name, message, () => act.step(message, by), text);
    return [step("previous variant of", -1, "‹"), ` ${at + 1} of ${tails.length}`, step("next variant of", 1, "›")];
  }

  // Those that an edit replaces.
  function mark(begin) {
    talk.messages.forEach((message, at) => drawn.get(message).box.classList.toggle("replaced", at >= begin));
  }

  const isAtEnd = () => innerHeight + scrollY >= document.body.scrollHeight - 80;
  const scroll = () => scrollTo(0, document.body.scrollHeight);

  function redrawWhole(message) {
    const follows = isAtEnd();
    redraw(message, true);
    if (follows) scroll();
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

  return { append, drawAll, isAtEnd, mark, numberOf, paintLater, redrawWhole };
})();
