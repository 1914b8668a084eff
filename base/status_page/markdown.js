"use strict";
// Markdown as elements. `marked` only divides the text into tokens: no markup of a model is ever parsed by the browser.
const drawMarkdown = (() => {
  const SAFE = /^(https?:|mailto:)/i;
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
    const copy = element("button", { type: "button", className: "copy" }, "copy");
    copy.setAttribute("aria-label", `copy ${name || "code"}`);
    copy.addEventListener("click", () => copyText(copy, text));
    const code = element("pre", { tabIndex: 0 }, element("code", {}, text));
    return element("div", { className: "code" }, element("div", {}, element("span", {}, name), copy), code);
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
  try {
    await navigator.clipboard.writeText(text);
    button.textContent = "copied";
  } catch {
    button.textContent = "needs https";
  }
  setTimeout(() => { button.textContent = name; }, 1500);
}
