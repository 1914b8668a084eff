"""How the chat draws Markdown and formulas of a model."""

import json

import pytest

from tests.e2e.page.written_chat import LAST, MARKUP
from tests.support.browser import Tab, needs_browser

pytestmark = [pytest.mark.slow, needs_browser]
_BEGINNINGS = r"a_ |_*a|*_a|a~_|[*a|__a|x*y*_z_|> |>|1. |- |~a|`a|<a |![|](|\|$a|$a$|\(|\(a\) |$$|\[|$x_1^"
_WITHIN = r"{|\frac|\left(|\sqrt[|x^|\begin{matrix}|\text{|&|\\|a |12|\not|\bf "
_DEEP = r"\sqrt{|\hat{|\frac{1}{|x^{|\overbrace{|\left(|\begin{pmatrix}"


@pytest.mark.parametrize("is_within", [False, True], ids=["pattern", "formula"])
async def test_markdown_of_a_model_is_divided_in_linear_time(browser, is_within):
    """Four times the text may not take ten times as long. A square would take 16 times as long."""
    for pattern in (_WITHIN if is_within else _BEGINNINGS).split("|"):
        await _draw(browser, pattern, 2000, is_within=is_within)
        short, long = [await _draw(browser, pattern, size, is_within=is_within) for size in (8000, 32000)]
        assert long <= max(10 * short, 0.05), (pattern, short, long)


async def _draw(browser: Tab, pattern: str, size: int, *, is_within: bool) -> float:
    """Processor seconds for so many repetitions of the pattern, or for formulas that are full of it."""
    if not is_within:
        return await browser.processor_s(f"drawMarkdown({json.dumps(pattern)}.repeat({size})), 0")
    formula = json.dumps(f"$${pattern * (3900 // len(pattern))}$$\n\n")
    return await browser.processor_s(f"drawMarkdown({formula}.repeat({size // 2000})), 0")


async def test_the_deepest_formula_is_laid_out_at_a_bounded_cost(browser):
    """A browser could lay out each level several times. Twice the depth may not take eight times as long."""
    for part in _DEEP.split("|"):
        draw = _depth_drawing(part)
        deepest = await browser.evaluate(f"[...Array(60).keys()].filter((depth) => ({draw})(depth) !== null).at(-1)")
        assert 5 <= deepest < 30, part
        half, whole = [await browser.processor_s(_layout(draw, depth)) for depth in (deepest // 2, deepest)]
        assert whole <= max(8 * half, 0.05), (part, half, whole)


def _depth_drawing(part: str) -> str:
    """A function of JavaScript that draws a formula of so many levels."""
    end = {"\\left(": "\\right)", "\\begin{pmatrix}": "\\end{pmatrix}"}.get(part, "}")
    text = f'"$$" + {json.dumps(part)}.repeat(depth) + "x" + {json.dumps(end)}.repeat(depth) + "$$"'
    return f"(depth) => drawFormula({text})"


def _layout(draw: str, depth: int) -> str:
    """Lays out 50 formulas of so many levels."""
    formulas = f"...Array.from({{length: 50}}, () => ({draw})({depth}))"
    return f"$('talk').replaceChildren({formulas}), $('talk').getBoundingClientRect().width"


_DRAWN = r"""
\(\frac{a}{2}\)                          => mfrac(mrow(mi a) mrow(mn 2))
\(\frac12\)                              => mfrac(mn 1 mn 2)
$x_1^{2}$                                => msubsup(mi x mn 1 mrow(mn 2))
$f''(x)$                                 => msup(mi f mo ′′) mo ( mi x mo )
$x^12$                                   => msup(mi x mn 1) mn 2
$$\sum_{i}^n i$$                         => munderover(mo ∑ mrow(mi i) mi n) mi i
$\int_0^1$                               => msubsup(mo ∫ mn 0 mn 1)
$\lim_{x \to 0}$                         => munder(mo lim mrow(mi x mo → mn 0))
$\sqrt[3]{x}$                            => mroot(mrow(mi x) mrow(mn 3))
$\mathbb{R} \mathcal L \mathbf{x}_\pi$   => mrow(mi ℝ) mi ℒ msub(mrow(mi 𝐱) mi π)
$\left( x \middle| y \right.$            => mrow(mo ( mi x mo | mi y mo)
$\text{if } x$                           => mtext if~ mi x
\[ a &= b \\ &= c \]                     => mtable(mtr(mtd(mi a) mtd(mo = mi b)) mtr(mtd mtd(mo = mi c)))
\[ \begin{cases} 1 & 2 \\ \end{cases} \] => mrow(mo { mtable(mtr(mtd(mn 1) mtd(mn 2))))
$\begin{array}{lr} a & b \end{array}$    => mtable(mtr(mtd(mi a) mtd(mi b)))
$\boxed{4}$                              => mrow(mrow(mn 4))
$\hat x \overline{AB}$                   => mover(mi x mo ^) mover(mrow(mi A mi B) mo ‾)
$\underbrace{a}_n$                       => munder(munder(mrow(mi a) mo ⏟) mi n)
$\operatorname{rank} A$                  => mo rank mi A
$1{,}000 \not= 2 $ costs                 =>
$a \le b$, $n$th, $5$                    => mi a mo ≤ mi b / mi n / mn 5
$5, or 3$ and $HOME/$USER, $ 5$, $6 a$7  =>
\(\nosuch{a}\) \(\frac{a}\) \({\) \(}\)  =>
$a_b_c$ $\left( a$ $\begin{x}a\end{x}$   =>
$\text{$ $\text{\alpha}$ $a & $ \(\)     =>
"""


async def test_a_formula_is_drawn_or_stays_as_written(browser):
    for source, drawn in (map(str.strip, line.split("=>")) for line in _DRAWN.strip().splitlines()):
        code = f"""(() => {{
            const leaf = (node) => `${{node.localName}} ${{node.textContent.replace("\u00a0", "~")}}`.trim();
            const nested = (node) => node.children.length ? `${{node.localName}}(${{many(node)}})` : leaf(node);
            const many = (node) => [...node.children].map(nested).join(" ");
            const box = element("div", {{}}, ...drawMarkdown({json.dumps(source)}));
            return JSON.stringify([[...box.querySelectorAll("math")].map(many).join(" / "), box.textContent]);
        }})()"""
        found, text = json.loads(await browser.evaluate(code))
        assert found == drawn, source
        assert drawn or text == source


async def test_formulas_of_a_model_bring_no_markup_and_code_has_none(written, browser):
    hostile = rf"""$\text{{{MARKUP}}}$ \({MARKUP}\) $\href{{javascript:alert(1)}}{{x}}$

\(\begin{{{MARKUP}}}a\end{{{MARKUP}}}\)

`\(a\)` [$x$](javascript:alert) \*no formula\*

```
$$a$$
```

|a|
|-:|
|$x|y$|"""
    written.deltas = [{"content": hostile}]
    await browser.ask("formulas?")
    names = f"[...new Set([...{LAST}.querySelectorAll('math, math *')].map(each => each.namespaceURI))]"
    assert await browser.evaluate(names) == ["http://www.w3.org/1998/Math/MathML"]
    assert await browser.evaluate(f"{LAST}.querySelectorAll('img, script, [href], [onerror], [style]').length") == 0
    assert await browser.evaluate("document.title") == "ready – small"
    codes = f"[...{LAST}.querySelectorAll('code')].map(code => code.textContent)"
    assert await browser.evaluate(codes) == [r"\(a\)", "$$a$$"]
    assert await browser.evaluate(f"{LAST}.querySelector('td math').textContent") == "x|y"
    assert await browser.evaluate(f"getComputedStyle({LAST}.querySelector('td')).textAlign") == "right"
    assert browser.errors == []
