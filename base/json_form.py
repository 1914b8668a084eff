"""Says what is wrong in a JSON text, and shows what it was before a shell or a word processor changed it."""

import json
import re
import shlex
from collections.abc import Callable
from contextlib import suppress
from typing import Any, Final

from base.json_depth import check_depth, read_json
from envs.suggestion import plain_word, visible_text

_TEXT: Final = r'"(?:[^"\\]|\\.)*"'
_BARE: Final = re.compile(rf'{_TEXT}|[^\s{{}}\[\],:"]+')
"""A text in quotes, or one without them, of JSON."""
_FINAL_COMMA: Final = re.compile(rf"({_TEXT})|,(?=\s*[}}\]])")
_NO_ESCAPE: Final = re.compile(r'\\(?:["\\/bfnrt]|u[0-9a-fA-F]{4})|\\')
"""An escape sequence of JSON, or a backslash that begins none."""
_PAIRS: Final = re.compile(r"[A-Za-z_][\w.-]*=[^=,\s]+(?:,\s*[A-Za-z_][\w.-]*=[^=,\s]+)*")
_NAME: Final = re.compile(r"[A-Za-z_][\w./-]*")
_PYTHON: Final = {"True": "true", "False": "false", "None": "null"}
_MOST_CHARACTERS: Final = 2000
_MOST_SHOWN: Final = 20
_FAULTS: Final = {
    "Extra data": "{found} follows the JSON, at character {place}: remove it",
    "Expecting value": "{found} is no value of JSON, at character {place}",
    "Expecting property name enclosed in double quotes": "{found} is no name in double quotes, at character {place}",
    "Expecting ':' delimiter": "a colon is missing before {found}, at character {place}",
    "Expecting ',' delimiter": "a comma or a closing bracket is missing before {found}, at character {place}",
    "Invalid \\escape": "{found} begins with no escape sequence of JSON, at character {place}: write \\\\ for \\",
    "Invalid control character at": "{found} begins with a line break or tab in a text, at character {place}",
    "Unterminated string starting at": "the text that begins at character {place} has no closing quote",
    "Illegal trailing comma before end of object": "a comma stands before the closing bracket, at character {place}",
    "Illegal trailing comma before end of array": "a comma stands before the closing bracket, at character {place}",
}
"""A message of Python's parser -> a sentence about the place."""


def json_form(text: str) -> str:
    """`: …: write '{"a": 1}'`, or `: …, at character 9`, what is wrong in a text that is no JSON.

    Empty if the text does not look like JSON.
    """
    if len(text) <= _MOST_CHARACTERS and (repaired := _repaired(text)):
        return f": {repaired}"
    if text.lstrip()[:1] not in ("{", "["):
        return ""
    if len(text) > _MOST_CHARACTERS or '"' not in text or _num_open(text) > 0:
        return ": put the whole JSON between single quotes"
    return json_fault(text)


def json_fault(text: str) -> str:
    """`: …, at character 9`, where the text is no JSON. Empty if it is JSON."""
    try:
        read_json(text)
    except json.JSONDecodeError as err:
        rest = text[err.pos :]
        shown = repr(rest[:_MOST_SHOWN]) + ("…" if len(rest) > _MOST_SHOWN else "")
        sentence = _FAULTS.get(err.msg, f"{err.msg}, at character {{place}}")
        return f": {sentence.format(found=shown if rest else 'the end', place=err.pos + 1)}"
    except ValueError as err:
        return f": {err}"
    return ""


def _repaired(text: str) -> str:
    """What is wrong, and the JSON as it was meant. Empty if no repair leads to JSON."""
    if _PAIRS.fullmatch(text):
        pairs = (pair.split("=") for pair in text.replace(" ", "").split(","))
        content = ", ".join(f"{json.dumps(name)}: {_as_value(value)}" for name, value in pairs)
        return f"write {text} as {_quoted(read_json(f'{{{content}}}'))}"
    reasons, changed = [], text
    for reason, repair in _REPAIRS:
        if (form := repair(changed)) == changed:
            continue
        reasons.append(reason)
        changed = form
        if advice := _advice(" and ".join(reasons), form):
            return advice
    return ""


def _advice(reason: str, form: str) -> str:
    with suppress(ValueError):
        if isinstance(value := read_json(form), dict | list):
            return f"{reason}: write {_quoted(value)}"
    return ""


def _quoted(value: Any) -> str:
    return shlex.quote(json.dumps(value, ensure_ascii=False))


def _without_final_commas(text: str) -> str:
    return _FINAL_COMMA.sub(lambda match: match[1] or "", text)


def _with_escapes(text: str) -> str:
    return _NO_ESCAPE.sub(lambda match: match[0] if len(match[0]) > 1 else "\\\\", text)


def _without_line_breaks(text: str) -> str:
    with suppress(ValueError):
        check_depth(text)
        return json.dumps(json.loads(text, strict=False))
    return text


def _unquoted(text: str) -> str:
    bare = text.strip("\"' ")
    return bare.replace('\\"', '"') if '"' not in bare.replace('\\"', "") else bare


def _with_single_braces(text: str) -> str:
    return text.replace("{{", "{").replace("}}", "}") if text.startswith("{{") else text


def _with_double_quotes(text: str) -> str:
    if "'" not in text:
        return text
    whole = re.compile(rf"{_TEXT}|'((?:[^'\\]|\\.)*)'")

    def with_double(match: re.Match[str]) -> str:
        single = match[1]
        return match[0] if single is None else json.dumps(single)

    return whole.sub(with_double, text)


def _with_constants(text: str) -> str:
    return _BARE.sub(lambda match: _PYTHON.get(match[0], match[0]), text)


def _with_numbers(text: str) -> str:
    def with_number(match: re.Match[str]) -> str:
        number = _number(match[0])
        return match[0] if number is None else json.dumps(number)

    return _BARE.sub(with_number, text)


def _with_quotes(text: str) -> str:
    """The text with quotes around names. If it has quotes at all, only words like names have lost theirs."""
    has_quotes = '"' in text

    def quote(match: re.Match[str]) -> str:
        is_name = not has_quotes or _NAME.fullmatch(match[0]) is not None
        return _as_value(match[0]) if is_name or match[0] in _PYTHON else match[0]

    return _BARE.sub(quote, text)


def _in_braces(text: str) -> str:
    return f"{{{text}}}" if ":" in text and text[:1] not in ("{", "[") else text


_REPAIRS: Final[tuple[tuple[str, Callable[[str], str]], ...]] = (
    ("it has invisible characters", visible_text),
    ("its quotes are those of a word processor", plain_word),
    ("quotes or backslashes are a part of it", _unquoted),
    ("a comma stands before a closing bracket", _without_final_commas),
    ("a backslash begins no escape sequence of JSON", _with_escapes),
    ("a line break or tab stands in a text", _without_line_breaks),
    ("its braces are doubled", _with_single_braces),
    ("JSON has double quotes", _with_double_quotes),
    ("JSON writes true, false and null", _with_constants),
    ("a number is written in another way", _with_numbers),
    ("the quotes are lost", _with_quotes),
    ("the braces are lost", _in_braces),
)
"""What may be wrong, and the function that corrects it. They are applied one after the other."""


def _as_value(word: str) -> str:
    """A word without quotes as a value of JSON."""
    word = _PYTHON.get(word, word)
    with suppress(ValueError):
        read_json(word)
        return word
    return json.dumps(word)


def _number(word: str) -> int | float | None:
    """The value of a number that Python can write, and JSON cannot, such as 01, .5, +1 or 0x10."""
    if word[:1] not in "+-.0123456789":
        return None
    with suppress(ValueError):
        read_json(word)
        return None
    for convert in (int, float, lambda text: int(text, 0)):
        with suppress(ValueError):
            return convert(word)
    return None


def _num_open(text: str) -> int:
    """How many brackets stay open. Texts in quotes do not count."""
    bare = re.sub(_TEXT, "", text)
    return sum(map(bare.count, "{[")) - sum(map(bare.count, "}]"))
