"""Makes well-formed, truncated and damaged outputs with tool calls. They are the same in every run."""

import json
import random
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

FUNCTIONS: Final[list[dict[str, Any]]] = [
    {
        "name": "get_weather",
        "parameters": {
            "type": "object",
            "properties": {
                "city": {"type": "string"},
                "days": {"type": "integer"},
                "metric": {"type": "boolean"},
                "altitude": {"type": "number"},
            },
            "required": ["city"],
        },
    },
    {
        "name": "search",
        "parameters": {
            "type": "object",
            "properties": {
                "query": {"type": "string"},
                "filters": {"type": "object", "properties": {"year": {"type": "integer"}}},
                "tags": {"type": "array", "items": {"type": "string"}},
                "limit": {"anyOf": [{"type": "integer"}, {"type": "null"}]},
                "mode": {"enum": ["fast", "slow"]},
            },
        },
    },
    {"name": "now", "parameters": {"type": "object", "properties": {}}},
    {"name": "run_code", "parameters": {"type": "object", "properties": {"code": {"type": "string"}}}},
]
"""The tools of the request."""

_STRINGS: Final = (
    "Paris", "", "São Paulo", "北京", "new york, NY", 'say "hi"', "it's", "a\nb", "x\n", "\ty", "C:\\dir\\n", "🙂🚀",
    "5", "true", "null", "{}", "[1, 2]", "a < b && c > d", "<b>bold</b>", "for i in range(3):\n    print(i)", "f(x=1)",
    "👩‍👩‍👧", "\u202eabc", "1e5", " padded ", "a=b, c=[d]", "#!/bin/sh\necho \"$HOME\" | sed 's/x/y/'",
)  # fmt: skip
_NUMBERS: Final = (0, 1, -7, 42, 1000000)
_REALS: Final = (0.5, -3.25, 1e-7, 12.0, 3)
_FILTERS: Final = ({}, {"year": 2024}, {"year": 1, "deep": {"list": [1, [2, {"k": "v}"}]], "t": True, "n": None}})
_TAGS: Final = ([], ["a"], ["a", "b c", "d,e", "]"], ["ü", '"'])
_VALUES: Final[dict[str, Sequence[Any]]] = {
    "city": _STRINGS, "query": _STRINGS, "code": _STRINGS, "days": _NUMBERS, "metric": (True, False),
    "altitude": _REALS, "filters": _FILTERS, "tags": _TAGS, "limit": (*_NUMBERS, None), "mode": ("fast", "slow"),
}  # fmt: skip
_BEFORE: Final = (
    "",
    "",
    "",
    "Let me check.",
    "Sure!\n\n",
    "Ça marche 🙂 ",
    "1 < 2 and [3] {4}: ",
    "\n",
    "First line\n  second ",
)
_AFTER: Final = ("", "", "", "", "\n", "Done.", "\nThat is all.")
_PLAIN: Final = (
    "Hello!", "", " ", "\n\n", "a < b", "[1, 2, 3]", '{"a": 1}', "1 < 2 and [3] {4}: (5)",
    "Use f(x=1) or <b>.", "ünïcödé 🙂 北京",
    "```json\n{\"name\": \"x\"}\n```", "[link](http://example.com)", "<", "[", "{",
    "a\n\n\nb", "It's \"quoted\".", "tool_call", "func",
    "The list [a, b] has <two> items; see {this}.",
)  # fmt: skip


class Call(NamedTuple):
    """A call to write."""

    name: str
    arguments: dict[str, Any]


class RawText(NamedTuple):
    """One output. `kind` is `plain`, `calls`, `truncated` or `damaged`."""

    kind: str
    text: str


@dataclass(frozen=True, kw_only=True)
class Format:
    """A format in which models write calls."""

    name: str
    """The name of vLLM's parser."""
    write: Callable[[Sequence[Call], random.Random], str]
    markers: tuple[str, ...] = ()
    """Markers that are tokens of the real model."""
    around: Callable[[str, str, str], str] = staticmethod(lambda before, calls, after: before + calls + after)
    tokenize: Callable[[str], Sequence[int]] = staticmethod(lambda piece: ())
    """Returns the tokens of a piece, for parsers that read tokens."""


def raw_texts(form: Format, num_calls: int = 130, num_truncated: int = 60, num_damaged: int = 60) -> list[RawText]:
    """The texts of one format. Each text occurs only once."""
    choose = random.Random(form.name)
    calls = [_with_calls(form, choose) for _ in range(num_calls)]
    plain = [form.around("", "", text) for text in _PLAIN]
    truncated = [_truncated(choose.choice(calls), choose) for _ in range(num_truncated)]
    damaged = [_damaged(choose.choice(calls), form, choose) for _ in range(num_damaged)]
    texts: dict[str, str] = {}
    for kind, written in {"plain": plain, "calls": calls, "truncated": truncated, "damaged": damaged}.items():
        for text in written:
            texts.setdefault(text, kind)
    return [RawText(kind, text) for text, kind in texts.items()]


def _with_calls(form: Format, choose: random.Random) -> str:
    calls = [_random_call(choose) for _ in range(choose.choice((1, 1, 1, 2, 2, 3)))]
    return form.around(choose.choice(_BEFORE), form.write(calls, choose), choose.choice(_AFTER))


def _random_call(choose: random.Random) -> Call:
    function = choose.choice(FUNCTIONS)
    names = [name for name in function["parameters"]["properties"] if choose.random() < 0.6]
    return Call(function["name"], {name: choose.choice(_VALUES[name]) for name in names})


def _truncated(text: str, choose: random.Random) -> str:
    return text[: choose.randint(1, len(text))]


def _damaged(text: str, form: Format, choose: random.Random) -> str:
    """Removes, doubles or replaces a marker of the text, or changes other characters."""
    marks = [found.span() for found in re.finditer(r"<[^<>]*>|\[[A-Z_]+\]|[\[\]{}()\"':,=]", text)] or [(0, len(text))]
    start, end = choose.choice(marks)
    other = text[slice(*choose.choice(marks))]
    new = choose.choice(
        ("", text[start:end] * 2, other, text[start:end] + " oops ", text[start:end].upper() + "x", "\n")
    )
    return text[:start] + new + text[end:]


def json_text(value: Any) -> str:
    """A value as JSON in the style of models."""
    return json.dumps(value, ensure_ascii=False)


def plain_text(value: Any) -> str:
    """A value in the style of formats without quotes."""
    return value if isinstance(value, str) else json_text(value)
