"""Repairs a JSON text that a shell, a template or a word processor has changed, to show it in a message."""

import json
import re
import shlex
from collections.abc import Iterator
from contextlib import suppress
from typing import Final

from base.json_depth import read_json
from envs.suggestion import plain_word

_BARE: Final = re.compile(r'"[^"]*"|[^\s{}\[\],:"]+')
"""A text in quotes, or one without them, of JSON."""
_PYTHON: Final = {"True": "true", "False": "false", "None": "null"}
_MOST_CHARACTERS: Final = 2000


def json_form(text: str) -> str:
    """`: …: write '{"a": 1}'`, what JSON was before a shell, a template or a word processor changed it.

    Empty if the text does not look like JSON.
    """
    for what, form in _json_forms(text) if len(text) <= _MOST_CHARACTERS else ():
        with suppress(ValueError):
            if isinstance(value := read_json(form), dict | list):
                return f": {what}: write {shlex.quote(json.dumps(value, ensure_ascii=False))}"
    return ": put the whole JSON between single quotes" if text[:1] in ("{", "[") else ""


def _json_forms(text: str) -> Iterator[tuple[str, str]]:
    yield "its quotes are those of a word processor", (plain := plain_word(text))
    yield "quotes or backslashes are a part of it", (bare := plain.strip("\"' ").replace('\\"', '"'))
    yield "its braces are doubled", bare.replace("{{", "{").replace("}}", "}")
    quoted = _BARE.sub(_with_quotes, bare.replace("'", '"'))
    yield "JSON has double quotes" if "'" in bare else "the quotes are lost", quoted
    yield "quotes and braces are lost", f"{{{quoted}}}" if quoted else ""


def _with_quotes(match: re.Match[str]) -> str:
    word = _PYTHON.get(match[0], match[0])
    with suppress(ValueError):
        read_json(word)
        return word
    return json.dumps(word)
