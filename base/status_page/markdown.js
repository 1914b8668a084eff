"use strict";
// Markdown as elements. `marked` only divides the text into tokens: no markup of a model is ever parsed by the browser.
const drawMarkdown = (() => {
  const SAFE = /^(https?:|mailto:)/i;
  const KINDS = ["comment", "string", "number", "keyword"];
  const CODE = [
    /"(?:\\.|[^"\\\n])*"|'(?:\\.|[^'\\\n])*'|`[^`]*`/,
    /\b\d[\w.]*/,
    /\b(?:as|async|await|break|case|catch|class|const|continue|def|do|done|elif|else|enum|except|export|extends|fi|finally|fn|for|from|func|function|if|impl|import|in|interface|lambda|let|match|new|not|package|pub|raise|return|self|static|struct|switch|then|this|throw|try|type|use|var|void|while|with|yield|[Ff]alse|[Tt]rue|None|null)\b/,
  ].map(({ source }) => `(${source})`).join("|");
  const TAGS = { strong: "strong", em: "em", del: "del", blockquote: "blockquote", paragraph: "p" };

  const many = (tokens) => tokens.flatMap(draw);

  function draw(token) {
    switch (token.type) {
      case "space": case "def": return [];
      case "br": return [element("br")];
      case "hr": return [element("hr")];
      case "heading": return [element("p", { className: `heading h${token.depth}` }, ...many(token.tokens))]; // no part of the page's outline
      case "codespan": return [element("code", {}, token.text)];
      case "code": return [drawCode(token)];
      case "list": return [drawList(token)];
      case "table": return [drawTable(token)];
      case "link": return [drawLink(token.href, many(token.tokens))];
      case "image": return [drawLink(token.href, [token.text || token.href])];
      case "escape": return [token.text];
      default:
        if (TAGS[token.type]) return [element(TAGS[token.type], {}, ...many(token.tokens))];
        return token.tokens ? many(token.tokens) : [token.raw]; // `html` is shown as the text that it is
    }
  }

  function drawLink(href, children) {
    return SAFE.test(href) ? element("a", { href, target: "_blank", rel: "noopener noreferrer" }, ...children) : element("span", {}, ...children);
  }

  function drawCode({ text, lang }) {
    const name = (lang ?? "").split(/\s/)[0];
    const copy = button("copy", (self) => copyText(self, text), { className: "copy", ariaLabel: `copy ${name || "code"}` });
    const code = element("pre", { tabIndex: 0 }, element("code", {}, ...(name ? highlight(text, name) : [text])));
    return element("div", { className: "code" }, element("div", {}, element("span", {}, name), copy), code);
  }

  function highlight(text, language) {
    const line = /^(c|h|java|js|ts|go|rust|rs|php|swift|kotlin|scala|dart|zig)/.test(language) ? "\\/\\/" : "#";
    const parts = text.split(new RegExp(`((?<!\\S)${line}.*|\\/\\*[^]*?(?:\\*\\/|$))|${CODE}`));
    return parts.flatMap((part, at) => !part ? [] : at % 5 ? element("span", { className: KINDS[at % 5 - 1] }, part) : part);
  }

  function drawList({ ordered, start, items }) {
    const list = element(ordered ? "ol" : "ul", ordered && start > 1 ? { start } : {});
    list.append(...items.map((item) => {
      const box = item.task ? [element("input", { type: "checkbox", checked: item.checked, disabled: true, ariaLabel: "done" })] : [];
      return element("li", {}, ...box, ...many(item.tokens.filter((token) => token.type !== "checkbox")));
    }));
    return list;
  }

  function drawTable({ header, rows }) {
    const line = (cells, name) => element("tr", {}, ...cells.map((cell) => element(name, {}, ...many(cell.tokens))));
    return element("table", {}, element("thead", {}, line(header, "th")), element("tbody", {}, ...rows.map((row) => line(row, "td"))));
  }

  return (text) => {
    try {
      return many(marked.lexer(text));
    } catch {
      return [element("p", { className: "plain" }, text)]; // such as a thousand quotes within each other
    }
  };
})();

// The clipboard needs https or localhost; elsewhere the button says so.
async function copyText(button, text) {
  const name = button.textContent;
  button.textContent = await navigator.clipboard?.writeText(text).then(() => "copied", () => null) ?? "needs https";
  setTimeout(() => { button.textContent = name; }, 1500);
}
