"use strict";
// The dialog that lists the conversations.
const talkList = (() => {
  let page = null; // the chat: `current` returns the conversation that it shows, `open` shows another

  const say = (text) => { $("talks-notice").textContent = text; };

  function draw() {
    const wanted = $("search").value.toLowerCase(), isWanted = (text) => text.toLowerCase().includes(wanted);
    const found = talks.all(page.current()).filter((talk) => [talks.titleOf(talk), ...talk.messages.map(({ text }) => text)].some(isWanted));
    $("talk-list").replaceChildren(...found.map(drawRow));
    if (!found.length) $("talk-list").append(element("li", {}, wanted ? "No chat has this text." : "None yet."));
  }

  function drawRow(talk) {
    const title = talks.titleOf(talk), isCurrent = talk.id === page.current().id;
    const open = button(title, () => { $("talks").close(); if (!isCurrent) page.open(talk); }, { className: "title", ariaCurrent: String(isCurrent) });
    const action = (name, act) => button(name, () => act(talk), { className: "copy", ariaLabel: `${name} “${title}”` });
    const facts = element("small", {}, `${talk.messages.length} messages, ${new Date(talk.changed).toLocaleDateString()}`);
    const save = () => talkFiles.download(talkFiles.toMarkdown(talk), "chat.md");
    return element("li", {}, open, facts, action("rename", rename), action("export", save), action("delete", remove));
  }

  function rename(talk) {
    const title = prompt("Name of the chat", talks.titleOf(talk))?.trim();
    if (title) { talk.title = title; changed(talks.keep(talk)); }
  }

  function remove(talk) {
    if (!confirm(`Delete “${talks.titleOf(talk)}”?`)) return;
    talks.remove(talk);
    if (talk.id === page.current().id) { talk.messages = []; page.open(talks.create(talk)); }
    changed("Deleted.");
  }

  function changed(text) {
    say(text);
    draw();
    $("search").focus();
  }

  // Reads what “export” and “export all” have written. A conversation that this browser has already is not added again.
  async function importFile(file) {
    const fit = await talkFiles.read(file);
    if (!fit.length) return say(`${file.name} has no chats. Import reads what “export” and “export all” have written.`);
    const kept = talks.all(page.current()), known = new Map(kept.map((talk) => [talk.id, JSON.stringify(talks.parse(talk).messages)]));
    const texts = new Set(file.name.endsWith(".md") ? kept.map(talkFiles.toMarkdown) : []);
    const fresh = fit.filter((talk) => known.get(talk.id) !== JSON.stringify(talk.messages) && !texts.has(talkFiles.toMarkdown(talk)));
    const numMisfits = fresh.filter((talk) => talks.keep(known.has(talk.id) ? { ...talk, id: talks.create().id } : talk)).length;
    const fault = numMisfits ? ` The browser's storage is full: ${numMisfits} lack images or are not imported.` : "";
    changed(`${fresh.length} of ${fit.length} chats were new.${fault}`);
  }

  function begin(shown) {
    page = shown;
    $("list-talks").addEventListener("click", () => { $("search").value = ""; say(""); draw(); $("talks").showModal(); });
    $("close-talks").addEventListener("click", () => $("talks").close());
    $("search").addEventListener("input", draw);
    addEventListener("storage", () => { if ($("talks").open) draw(); });
    $("export-talks").addEventListener("click", () => talkFiles.download(JSON.stringify(talks.all(page.current())), "chats.json"));
    $("import-talks").addEventListener("change", () => { importFile($("import-talks").files[0]); $("import-talks").value = ""; });
  }

  return { begin };
})();
