"use strict";
// Formulas of TeX as MathML. What is not known, not closed, too long or too deep makes no formula: the caller shows it as text.
const drawFormula = (() => {
  const MATHML = "http://www.w3.org/1998/Math/MathML", MOST_CHARS = 4000, DEEPEST = 24;
  const TOKEN = /\\(?:[A-Za-z]+|[^])|\d+(?:\.\d+)?|\s+|[^]/gu;
  const words = (text) => text.trim().split(/\s+/);
  const table = (text) => new Map(words(text).map((word, at, all) => [word, all[at + 1]]).filter((_, at) => at % 2 === 0));

  const LETTERS = table(`alpha α beta β gamma γ delta δ epsilon ϵ varepsilon ε zeta ζ eta η theta θ vartheta ϑ iota ι kappa κ lambda λ mu μ
    nu ν xi ξ pi π varpi ϖ rho ρ varrho ϱ sigma σ varsigma ς tau τ upsilon υ phi ϕ varphi φ chi χ psi ψ omega ω Gamma Γ Delta Δ Theta Θ
    Lambda Λ Xi Ξ Pi Π Sigma Σ Upsilon Υ Phi Φ Psi Ψ Omega Ω ell ℓ hbar ℏ imath ı jmath ȷ Re ℜ Im ℑ wp ℘ partial ∂ nabla ∇ infty ∞
    emptyset ∅ varnothing ∅ aleph ℵ forall ∀ exists ∃ nexists ∄ angle ∠ triangle △ square □ Box □ blacksquare ■ top ⊤ bot ⊥ prime ′ degree °
    dots … ldots … dotsc … cdots ⋯ dotsb ⋯ vdots ⋮ ddots ⋱ % % $ $ # # & & _ _`);
  const OPERATORS = table(`times × div ÷ cdot ⋅ pm ± mp ∓ ast ∗ star ⋆ circ ∘ bullet ∙ oplus ⊕ ominus ⊖ otimes ⊗ odot ⊙ wedge ∧ land ∧
    vee ∨ lor ∨ cap ∩ cup ∪ sqcup ⊔ uplus ⊎ setminus ∖ le ≤ leq ≤ leqslant ⩽ lt < ge ≥ geq ≥ geqslant ⩾ gt > ll ≪ gg ≫ ne ≠ neq ≠ equiv ≡
    approx ≈ sim ∼ simeq ≃ cong ≅ propto ∝ asymp ≍ doteq ≐ triangleq ≜ coloneqq ≔ lesssim ≲ gtrsim ≳ prec ≺ succ ≻ preceq ⪯ succeq ⪰ in ∈
    notin ∉ ni ∋ subset ⊂ subseteq ⊆ subsetneq ⊊ supset ⊃ supseteq ⊇ supsetneq ⊋ mid ∣ nmid ∤ parallel ∥ perp ⊥ models ⊨ vdash ⊢ to →
    rightarrow → leftarrow ← gets ← leftrightarrow ↔ Rightarrow ⇒ Leftarrow ⇐ Leftrightarrow ⇔ implies ⟹ impliedby ⟸ iff ⟺ mapsto ↦
    longrightarrow ⟶ longleftarrow ⟵ Longrightarrow ⟹ Longleftrightarrow ⟺ longmapsto ⟼ hookrightarrow ↪ rightharpoonup ⇀
    rightleftharpoons ⇌ uparrow ↑ downarrow ↓ nearrow ↗ searrow ↘ neg ¬ lnot ¬ therefore ∴ because ∵ colon : dagger † ddagger ‡`);
  const LARGE = table("sum ∑ prod ∏ coprod ∐ bigcup ⋃ bigcap ⋂ bigoplus ⨁ bigotimes ⨂ bigvee ⋁ bigwedge ⋀ int ∫ iint ∬ iiint ∭ oint ∮");
  const FUNCTIONS = new Set(words("sin cos tan cot sec csc arcsin arccos arctan sinh cosh tanh coth log ln lg exp deg dim ker hom arg gcd"));
  const LIMITS = new Set(words("lim max min sup inf det Pr limsup liminf argmax argmin"));
  const BRACKETS = table(`( ( ) ) [ [ ] ] | | / / \\{ { \\} } \\| ‖ \\lbrace { \\rbrace } \\langle ⟨ \\rangle ⟩ \\lceil ⌈ \\rceil ⌉ \\lfloor ⌊
    \\rfloor ⌋ \\vert | \\lvert | \\rvert | \\Vert ‖ \\lVert ‖ \\rVert ‖ \\backslash \\ \\uparrow ↑ \\downarrow ↓`).set(".", "");
  const SIZES = table("big 1.2em bigl 1.2em bigr 1.2em Big 1.8em Bigl 1.8em Bigr 1.8em bigg 2.4em biggl 2.4em biggr 2.4em Bigg 3em Biggl 3em Biggr 3em");
  const ABOVE = table("hat ^ widehat ^ bar ‾ overline ‾ vec → overrightarrow → overleftarrow ← tilde ~ widetilde ~ dot ˙ ddot ¨ check ˇ overbrace ⏞");
  const BELOW = table("underline _ underbrace ⏟");
  const SPACES = table(", 0.17em : 0.22em > 0.22em ; 0.28em ! -0.17em thinspace 0.17em enspace 0.5em quad 1em qquad 2em").set(" ", "0.25em");
  const ALIGNED = words("aligned align align* split alignat eqnarray"), CENTRED = words("gathered gather gather* equation equation* smallmatrix matrix");
  const FENCES = { pmatrix: "()", bmatrix: "[]", Bmatrix: "{}", vmatrix: "||", Vmatrix: "‖‖", cases: "{" };
  const TEXTS = new Set(words("text textrm textnormal textbf textit textsf texttt mbox hbox operatorname"));
  // The first characters of Unicode's mathematical alphabets for A, a, 0, Α and α; those that Unicode has elsewhere.
  const FONTS = {
    mathbf: [0x1D400, 0x1D41A, 0x1D7CE, 0x1D6A8, 0x1D6C2], mathbb: [0x1D538, 0x1D552, 0x1D7D8], mathcal: [0x1D49C, 0x1D4B6],
    mathfrak: [0x1D504, 0x1D51E], mathsf: [0x1D5A0, 0x1D5BA, 0x1D7E2], mathtt: [0x1D670, 0x1D68A, 0x1D7F6], mathrm: [], mathit: [],
  };
  Object.assign(FONTS, { mathscr: FONTS.mathcal, boldsymbol: FONTS.mathbf, bm: FONTS.mathbf, bf: FONTS.mathbf, rm: FONTS.mathrm });
  const ELSEWHERE = table(`𝔺 ℂ 𝔿 ℍ 𝕅 ℕ 𝕇 ℙ 𝕈 ℚ 𝕉 ℝ 𝕑 ℤ 𝒝 ℬ 𝒠 ℰ 𝒡 ℱ 𝒣 ℋ 𝒤 ℐ 𝒧 ℒ 𝒨 ℳ 𝒭 ℛ 𝒺 ℯ 𝒼 ℊ 𝓄 ℴ 𝔆 ℭ 𝔋 ℌ 𝔌 ℑ 𝔕 ℜ 𝔝 ℨ`);

  const node = (name, ...children) => foreign(MATHML, name, {}, ...children);
  const bracket = (text, attributes) => foreign(MATHML, "mo", attributes, text);
  const space = (width) => foreign(MATHML, "mspace", { width });
  const joined = (nodes) => nodes.length === 1 ? nodes[0] : node("mrow", ...nodes);
  const refuse = (token) => { throw new SyntaxError(`not a formula: ${token}`); };

  // Reads each token once, from left to right.
  class Reader {
    at = 0;
    depth = 0;
    font = null;
    limits = new Set(); // elements whose scripts are below and above them

    constructor(text) { this.tokens = text.match(TOKEN) ?? []; }

    peek() {
      while (/^\s/.test(this.tokens[this.at] ?? "")) this.at += 1;
      return this.tokens[this.at];
    }

    next() {
      const token = this.peek();
      this.at += 1;
      return token;
    }

    expect(wanted) {
      const token = this.next();
      if (token !== wanted) refuse(token);
    }

    // Up to a token that ends a cell or a group, or up to `end`.
    row(end = null) {
      const nodes = [];
      for (let token = this.peek(); token !== undefined && token !== end && !/^(?:[}&]|\\\\|\\right|\\end)$/.test(token); token = this.peek()) {
        if (token === "\\displaystyle" || token === "\\textstyle") {
          this.next();
          nodes.push(this.deeper(() => foreign(MATHML, "mstyle", { displaystyle: String(token === "\\displaystyle") }, ...this.row(end))));
        } else nodes.push(this.scripted());
      }
      return nodes;
    }

    deeper(read) {
      this.depth += 1;
      if (this.depth > DEEPEST) refuse("too deep");
      const made = read();
      this.depth -= 1;
      return made;
    }

    scripted() {
      const base = this.atom(), scripts = { "_": null, "^": null };
      for (let token = this.peek(); ; token = this.peek()) {
        if (token === "\\limits" || token === "\\nolimits") {
          this.next();
          if (token === "\\limits") this.limits.add(base); else this.limits.delete(base);
        } else if (token === "'") scripts["^"] = this.primes(scripts["^"]);
        else if (token === "_" || token === "^") {
          if (scripts[token]) refuse(token);
          this.next();
          scripts[token] = this.argument();
        } else break;
      }
      const { "_": below, "^": above } = scripts, [under, over, both] = this.limits.has(base) ? ["munder", "mover", "munderover"] : ["msub", "msup", "msubsup"];
      if (below && above) return node(both, base, below, above);
      return below ? node(under, base, below) : above ? node(over, base, above) : base;
    }

    primes(before) {
      let marks = "";
      for (; this.peek() === "'"; this.next()) marks += "′";
      if (before) refuse("'");
      const after = this.peek() === "^" ? (this.next(), [this.argument()]) : [];
      return joined([node("mo", marks), ...after]);
    }

    // The next group, or the next single character.
    argument() {
      const token = this.peek();
      if (token === "_" || token === "^") refuse(token);
      if (/^\d./.test(token ?? "")) this.tokens.splice(this.at, 1, token[0], token.slice(1));
      return this.atom();
    }

    atom() {
      return this.deeper(() => {
        const token = this.peek();
        if (token === undefined || "}&%#$".includes(token)) refuse(token);
        if (token === "_" || token === "^" || token === "'") return node("mrow"); // scripts without a base
        this.next();
        if (token === "{") return this.group();
        if (token.length > 1 && token[0] === "\\") return this.command(token, token.slice(1));
        if (/^\d/.test(token)) return node("mn", [...token].map((digit) => this.styled(digit)).join(""));
        if (/^\p{L}/u.test(token)) return this.letter(token);
        if ("()[]|/".includes(token)) return bracket(token, "|/".includes(token) ? { stretchy: "false", lspace: "0", rspace: "0" } : { stretchy: "false" });
        return token === "~" ? space("0.33em") : node("mo", { "-": "−", "*": "∗" }[token] ?? token);
      });
    }

    group() {
      const font = this.font, nodes = this.row();
      this.font = font;
      this.expect("}");
      if (nodes.length === 1 && nodes[0].localName === "mo") return bracket(nodes[0].textContent, { lspace: "0", rspace: "0" }); // {,}
      return node("mrow", ...nodes);
    }

    letter(char) {
      const isItalic = this.font !== FONTS.mathrm && /[A-Za-zα-ωϑϕϖϱϵı-ȷ]/.test(char);
      return foreign(MATHML, "mi", isItalic ? {} : { mathvariant: "normal" }, this.styled(char));
    }

    styled(char) {
      const at = [/[A-Z]/, /[a-z]/, /\d/, /[Α-Ω]/, /[α-ω]/].findIndex((kind) => kind.test(char)), first = this.font?.[at];
      if (!first) return char;
      const styled = String.fromCodePoint(first + char.charCodeAt(0) - "Aa0Αα".charCodeAt(at));
      return ELSEWHERE.get(styled) ?? styled;
    }

    command(token, name) {
      if (LETTERS.has(name)) return this.letter(LETTERS.get(name));
      if (OPERATORS.has(name)) return node("mo", OPERATORS.get(name));
      if (LARGE.has(name)) return this.withLimits(foreign(MATHML, "mo", { movablelimits: "true" }, LARGE.get(name)), !name.endsWith("int"));
      if (FUNCTIONS.has(name) || LIMITS.has(name)) return this.withLimits(this.function(name), LIMITS.has(name));
      if (SPACES.has(name)) return space(SPACES.get(name));
      if (name in FONTS) return this.withFont(FONTS[name], name.length === 2);
      if (TEXTS.has(name)) return this.text(name);
      if (SIZES.has(name)) return this.bracket({ minsize: SIZES.get(name), maxsize: SIZES.get(name) });
      if (BRACKETS.has(token)) return bracket(BRACKETS.get(token), { stretchy: "false" });
      if (ABOVE.has(name)) return this.accent("mover", name, ABOVE.get(name));
      if (BELOW.has(name)) return this.accent("munder", name, BELOW.get(name));
      return this.structure(name);
    }

    structure(name) {
      switch (name) {
        case "frac": case "cfrac": return node("mfrac", this.argument(), this.argument());
        case "dfrac": return foreign(MATHML, "mstyle", { displaystyle: "true" }, node("mfrac", this.argument(), this.argument()));
        case "tfrac": return foreign(MATHML, "mstyle", { displaystyle: "false" }, node("mfrac", this.argument(), this.argument()));
        case "binom": return node("mrow", node("mo", "("), foreign(MATHML, "mfrac", { linethickness: "0" }, this.argument(), this.argument()), node("mo", ")"));
        case "sqrt": return this.root();
        case "overset": case "stackrel": return this.stacked("mover");
        case "underset": return this.stacked("munder");
        case "xrightarrow": return node("mover", node("mo", "⟶"), this.argument());
        case "left": return this.fenced();
        case "middle": return this.bracket({ stretchy: "true" });
        case "begin": return this.environment();
        case "boxed": return foreign(MATHML, "mrow", { class: "boxed" }, this.argument());
        case "not": return node("mo", `${this.atom().textContent}\u0338`);
        case "bmod": case "mod": return node("mo", "mod");
        case "pmod": return node("mrow", space("0.5em"), node("mo", "("), node("mo", "mod"), space("0.3em"), this.argument(), node("mo", ")"));
        case "tag": return node("mrow", space("2em"), node("mtext", `(${this.raw()})`));
        case "nonumber": case "notag": case "hline": return node("mrow");
        default: return refuse(name);
      }
    }

    withLimits(made, has) {
      if (has) this.limits.add(made);
      return made;
    }

    function(name) {
      const isApart = !["(", "{", "\\left", "^", "_"].includes(this.peek());
      return bracket(name.replace(/^(lim|arg)(?=...)/, "$1 "), { movablelimits: "true", lspace: "0.17em", rspace: isApart ? "0.17em" : "0" });
    }

    withFont(font, isForRest) {
      const before = this.font;
      this.font = font;
      if (isForRest) return node("mrow"); // \bf, up to the end of the group
      const made = this.argument();
      this.font = before;
      return made;
    }

    text(name) {
      const hasLimits = name === "operatorname" && this.peek() === "*" && this.next();
      if (name === "operatorname") return this.withLimits(this.function(this.raw()), hasLimits);
      return node("mtext", this.raw().replace(/^ | $/g, "\u00A0"));
    }

    // The text of the next group, in which only escaped characters are allowed.
    raw() {
      this.expect("{");
      for (const parts = []; ; this.at += 1) {
        const token = this.tokens[this.at];
        if (token === "}") { this.at += 1; return parts.join("").replace(/\s+/g, " "); }
        if (token === undefined || /^(?:[{$]|\\[^ %$#&_{}])/.test(token)) refuse(token);
        parts.push(token.replace(/^\\/, "").replace("~", "\u00A0"));
      }
    }

    root() {
      if (this.peek() !== "[") return node("msqrt", this.argument());
      this.next();
      const index = node("mrow", ...this.row("]"));
      this.expect("]");
      return node("mroot", this.argument(), index);
    }

    accent(kind, name, mark) {
      const stretchy = String(/^(over|under|wide)/.test(name)), made = node(kind, this.argument(), bracket(mark, { stretchy }));
      made.setAttribute(kind === "mover" ? "accent" : "accentunder", "true");
      return this.withLimits(made, name.endsWith("brace"));
    }

    stacked(kind) {
      const mark = this.argument();
      return node(kind, this.argument(), mark);
    }

    bracket(attributes) {
      const token = this.next();
      if (!BRACKETS.has(token)) refuse(token);
      return bracket(BRACKETS.get(token), attributes);
    }

    fenced() {
      const begin = this.bracket({ stretchy: "true", form: "prefix" }), inner = this.row();
      this.expect("\\right");
      return node("mrow", begin, ...inner, this.bracket({ stretchy: "true", form: "postfix" }));
    }

    environment() {
      const name = this.raw(), fences = FENCES[name];
      if (!fences && name !== "array" && !ALIGNED.includes(name) && !CENTRED.includes(name)) refuse(name);
      const spec = name === "array" ? this.raw().replace(/[^lcr]/g, "") : ALIGNED.includes(name) ? "rl".repeat(8) : name === "cases" ? "ll" : "";
      const made = this.table(spec, /^(align|split|gather|equation)/.test(name));
      this.expect("\\end");
      if (this.raw() !== name) refuse(name);
      const fence = (char, form) => bracket(char, { stretchy: "true", form });
      return fences ? node("mrow", fence(fences[0], "prefix"), made, ...(fences[1] ? [fence(fences[1], "postfix")] : [])) : made;
    }

    // Cells up to what ends a group; `spec` has the alignment of each column.
    table(spec, isDisplay) {
      const rows = [[this.row()]];
      for (let token = this.peek(); token === "&" || token === "\\\\"; token = this.peek()) {
        this.next();
        if (token === "&") rows.at(-1).push(this.row()); else rows.push([this.row()]);
      }
      if (rows.length > 1 && rows.at(-1).flat().length === 0) rows.pop();
      const sides = { l: "left", r: "right" };
      const cell = (nodes, at) => foreign(MATHML, "mtd", { class: sides[spec[at]] ?? "center" }, ...nodes);
      return foreign(MATHML, "mtable", isDisplay ? { displaystyle: "true" } : {}, ...rows.map((cells) => node("mtr", ...cells.map(cell))));
    }

    whole() {
      const made = this.table("rl".repeat(8), true);
      if (this.peek() !== undefined) refuse(this.peek());
      return made.children.length === 1 && made.firstChild.children.length === 1 ? [...made.firstChild.firstChild.childNodes] : [made];
    }
  }

  // A formula with its dollars or brackets, or null. Between single dollars, a word is a sign that they are amounts of money.
  return (source) => {
    const isLong = source.startsWith("$$") || source[0] === "\\", isBlock = source.startsWith("$$") || source.startsWith("\\[");
    const text = isLong ? source.slice(2, -2) : source.slice(1, -1);
    if (!text.trim() || text.length > MOST_CHARS || (!isLong && /(?:^|\s)[A-Za-z]{2,}(?=[\s,.]|$)/.test(text))) return null;
    try {
      return foreign(MATHML, "math", { display: isBlock ? "block" : "inline", alttext: text }, ...new Reader(text).whole());
    } catch (err) {
      if (err instanceof SyntaxError) return null;
      throw err;
    }
  };
})();
