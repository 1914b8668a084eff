"""Builds a self-contained HTML page for charts and tables, in light and dark mode."""

from collections.abc import Iterable, Sequence
from html import escape
from typing import Final

_FIRST_HUE: Final = 215
_GOLDEN_ANGLE: Final = 137.508

_STYLE: Final = """
:root { color-scheme: light dark; }
body { font: 14px/1.45 system-ui, sans-serif; max-width: 1000px; margin: 2rem auto; padding: 0 1rem; }
svg { max-width: 100%; height: auto; display: block; margin: 1rem 0; }
svg text { fill: currentColor; font: 11px system-ui, sans-serif; }
svg text.in { fill: #fff; }
svg text.title { font-size: 14px; font-weight: 600; }
svg line { stroke: currentColor; }
svg line.grid { stroke-opacity: .15; }
table { border-collapse: collapse; margin: 1rem 0 2rem; }
caption { text-align: left; font-weight: 600; padding: .3rem 0; }
th, td { padding: .2rem .8rem .2rem 0; text-align: right; border-bottom: 1px solid #8884; }
th:first-child, td:first-child { text-align: left; }
.key { display: inline-block; width: .9em; height: .9em; margin-right: .5em; vertical-align: -.1em; }
"""


def build_page(title: str, parts: Iterable[str]) -> str:
    """The page; `parts` are HTML, `title` is text."""
    name = escape(title)
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{name}</title>'
        f"<style>{_STYLE}</style></head><body><h1>{name}</h1>{''.join(parts)}</body></html>\n"
    )


def pick_colour(index: int) -> str:
    """A colour for a bar, visible on white and on black; neighbouring indexes have distant hues."""
    hue = round(index * _GOLDEN_ANGLE) % 360
    return f"hsl({hue + _FIRST_HUE}, 55%, {(46, 36, 56)[index // 8 % 3]}%)"


def draw_paragraph(text: str) -> str:
    """A line of text."""
    return f"<p>{escape(text)}</p>"


def draw_table(caption: str, header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table; the header is text, cells are HTML."""
    head = "".join(f"<th>{escape(cell)}</th>" for cell in header)
    body = "".join("<tr>" + "".join(f"<td>{cell}</td>" for cell in row) + "</tr>" for row in rows)
    return f"<table><caption>{escape(caption)}</caption><tr>{head}</tr>{body}</table>"


def draw_key(colour: str, text: str) -> str:
    """A legend entry: a coloured square, then the text."""
    return f'<span class="key" style="background:{colour}"></span>{escape(text)}'


def draw_text(x: float, y: float, text: str, *, anchor: str = "start", kind: str = "") -> str:
    """A text in an SVG chart."""
    css_class = f' class="{kind}"' if kind else ""
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}"{css_class}>{escape(text)}</text>'
