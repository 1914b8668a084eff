"use strict";
// Conversations as files: JSON with all of them, and Markdown of one, which reads as a text and is imported again.
const talkFiles = (() => {
  const HEADING = /^## (user|assistant)$/;
  // A line of a message that is a heading of ours gets a backslash.
  const hide = (text) => text.replace(/^\\*## (?:user|assistant)$/gm, "\\$&");
  const restore = (text) => text.replace(/^\\(?=\\*## (?:user|assistant)$)/gm, "");
  const fenceOf = (text) => "`".repeat((text.match(/`+/g) ?? []).reduce((most, { length }) => Math.max(most, length), 2) + 1);

  // A message's text, with its files before it, each within a fence that is longer than any in the file.
  function textOf({ text, files = [] }) {
    return [...files.map((file) => `${file.name}:\n${fenceOf(file.text)}\n${file.text}\n${fenceOf(file.text)}`), text].join("\n\n");
  }

  // Variants, reasoning and figures are in the JSON only.
  function toMarkdown(talk) {
    const given = Object.fromEntries(talks.NAMES.filter((name) => name !== "system" && talk[name]).map((name) => [name, talk[name]]));
    const settings = Object.keys(given).length ? JSON.stringify(given) : "";
    const facts = { Model: talk.model, Date: new Date(talk.changed).toLocaleString("sv"), Settings: settings, "System prompt": hide(talk.system) };
    const lines = Object.entries(facts).filter(([, value]) => value).map(([name, value]) => `${name}: ${value}\n`);
    const section = (message) => `## ${message.role}\n\n${hide([...(message.images ?? []).map((url) => `![image](${url})`), textOf(message)].join("\n\n"))}\n`;
    return [`# ${talks.titleOf(talk).replace(/\s+/g, " ")}\n`, ...lines, ...talk.messages.map(section)].join("\n");
  }

  function fromMarkdown(text) {
    const lines = (/(?<!\r)\n/.test(text) ? text : text.replaceAll("\r\n", "\n")).split("\n"), heads = lines.flatMap((line, at) => HEADING.test(line) ? [at] : []);
    if (!lines[0].startsWith("# ") || !heads.length) return null;
    const between = (begin, end) => lines.slice(begin + 1, end).join("\n").replace(/^\n|\n$/g, "");
    const talk = { ...factsOf(between(0, heads[0])), title: lines[0].slice(2) };
    talk.messages = heads.map((head, at) => {
      const role = HEADING.exec(lines[head])[1], said = restore(between(head, heads[at + 1] ?? lines.length));
      return role === "user" ? { role, ...dividedOf(said) } : { role, text: said, model: talk.model, finish: "stop" };
    });
    return talk;
  }

  function factsOf(text) {
    const [head, ...systems] = text.split(/^System prompt: /m), fact = (name) => head.match(new RegExp(`^${name}: (.+)$`, "m"))?.[1];
    const found = { model: fact("Model"), changed: Date.parse(fact("Date")?.replace(" ", "T")) || Date.now(), system: restore(systems.join("System prompt: ")) };
    try { return { ...JSON.parse(fact("Settings") ?? "{}"), ...found }; } catch { return found; }
  }

  // The images and files at the beginning of a message, and the rest as its text.
  function dividedOf(text) {
    const images = [], files = [];
    for (let image; (image = /^!\[image\]\(([^)\n]*)\)\n\n/.exec(text)) && talks.isImage(image[1]); text = text.slice(image[0].length)) images.push(image[1]);
    for (let head; (head = /^([^\n]+):\n(`{3,})\n/.exec(text)); ) {
      const begin = head[0].length, end = text.indexOf(`\n${head[2]}\n\n`, begin), inner = text.slice(begin, end);
      if (end < 0 || fenceOf(inner) !== head[2]) break;
      files.push({ name: head[1], text: inner });
      text = text.slice(end + head[2].length + 3);
    }
    return { images, files, text };
  }

  function download(text, name) {
    element("a", { href: URL.createObjectURL(new Blob([text])), download: name }).click();
  }

  // The conversations of a file that have messages.
  async function read(file) {
    const text = await file.text(), parse = (found) => [found].flat().map(talks.parse).filter((talk) => talk?.messages.length);
    try { return parse(JSON.parse(text)); } catch { return parse(fromMarkdown(text)); }
  }

  return { download, read, textOf, toMarkdown };
})();
