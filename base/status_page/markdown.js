"use strict";
// Markdown as elements. `marked` only divides the text into tokens: no markup of a model is ever parsed by the browser.
const drawMarkdown = (() => {
  const SAFE = /^(https?:|mailto:)/i;
  const KINDS = ["comment", "string", "number", "keyword", "escape"];
  const CODE = [
    /"(?:\\.|[^"\\\n])*"|'(?:\\.|[^'\\\n])*'|`[^`]*`/,
    /\b\d[\w.]*/,
    /\b(?:as|async|await|break|case|catch|class|const|continue|def|do|done|elif|else|enum|except|export|extends|fi|finally|fn|for|from|func|function|if|impl|import|in|interface|lambda|let|match|new|not|package|pub|raise|return|self|static|struct|switch|then|this|throw|try|type|use|var|void|while|with|yield|[Ff]alse|[Tt]rue|None|null)\b/,
    /(?:\\.)+/, // so the quote after a backslash begins no string, and no line is searched twice for a string's end
  ].map(({ source }) => `(${source})`).join("|");
  const MARKS = /[*_~`[<>\\!@]/g, STEPS = 20, LEAST_STEPS = 100_000, DEEPEST = 20;
  const TAGS = { strong: "strong", em: "em", del: "del", blockquote: "blockquote", paragraph: "p" };

  // \(…\), \[…\], $$…$$ or $…$, which no letter or digit follows but that of $n$th. A formula has no opening bracket of its own kind within, so the search is linear.
  const FORMULA = /\uE000|\\\((?:[^\\`\n]|\n(?!\n)|\\[^()`])+?\\\)|\\\[(?:[^\\`\n]|\n(?!\n)|\\[^[\]`])+?\\\]|\$\$(?:[^$`\n]|\n(?!\n))+?\$\$|\$(?=\S)[^$`\n]+?(?<=\S)\$(?!(?!(?:st|nd|rd|th|s)\b)\w)/g;

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
      case "escape": return [/[()[\]{},;:]/.test(token.text) ? token.raw : token.text]; // of a formula that is not complete yet
      default:
        if (TAGS[token.type]) return [element(TAGS[token.type], {}, ...many(token.tokens))];
        return token.tokens ? many(token.tokens) : token.parts ?? [token.raw]; // `html` is shown as the text that it is
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
    return parts.flatMap((part, at) => !part ? [] : at % 6 ? element("span", { className: KINDS[at % 6 - 1] }, part) : part);
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
    const line = (cells, name) => element("tr", {}, ...cells.map((cell) => element(name, { className: cell.align ?? "" }, ...many(cell.tokens))));
    return element("table", {}, element("thead", {}, line(header, "th")), element("tbody", {}, ...rows.map((row) => line(row, "td"))));
  }

  // `marked` searches the rest of a paragraph for the end of each mark, and reads a quote or list again for each one
  // around it. What would take too long for the length of the whole text is shown as the text that it is.
  class Lexer extends marked.Lexer {
    left = 0;
    depth = 0;

    lex(text) {
      this.left = LEAST_STEPS + STEPS * text.length;
      return super.lex(text);
    }

    inlineTokens(text, tokens = []) {
      this.left -= text.length * (text.match(MARKS)?.length ?? 0);
      return this.left < 0 ? this.addText(text, tokens) : super.inlineTokens(text, tokens);
    }

    blockTokens(text, tokens = [], ...others) {
      if (this.depth >= DEEPEST) return this.addText(text, tokens);
      this.depth += 1;
      try { return super.blockTokens(text, tokens, ...others); } finally { this.depth -= 1; }
    }

    addText(text, tokens) {
      tokens.push({ type: "text", raw: text, text });
      return tokens;
    }
  }

  // While `marked` divides the text, a private character and a number stand for each formula.
  function divide(text) {
    const formulas = [], tokens = new Lexer().lex(text.replace(FORMULA, (formula) => `\uE000${formulas.push(formula) - 1}\uE001`));
    const restore = (part) => part.replace(/\uE000(\d+)\uE001/g, (_, at) => formulas[at]);
    if (formulas.length) marked.walkTokens(tokens, (token) => {
      if (token.type === "text" && !token.tokens) token.parts = token.raw.split(/\uE000(\d+)\uE001/).map((part, at) => at % 2 ? drawFormula(formulas[part]) ?? formulas[part] : part);
      for (const name of ["raw", "text", "href", "lang"]) if (token[name]) token[name] = restore(token[name]);
    });
    return tokens;
  }

  return (text) => {
    try {
      return many(divide(text));
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
