"""Reads a model's own `response_template`, with which transformers parses its output.

transformers' `ResponseParser` is not used: its cost grows with the square of the output, an end marker within
JSON text ends a call, and a malformed call loses the text of the same piece. `OutputParser` has none of this.
"""

from string import printable
from typing import Any, Final

import regex
from transformers.utils.chat_parsing.content_parsers import process_field
from transformers.utils.chat_parsing.response_templates import load_response_template

from base.json_depth import MOST_LEVELS, JsonDepthError
from server.text.parsers.call_text import Call, Found, Functions, Reader, write_typed_call
from server.text.parsers.formats import ReasoningFormat, ToolFormat
from server.text.parsers.json_text import is_nested_deeper

_REASONING_FIELDS: Final = ("thinking", "reasoning", "reasoning_content")
_MOST_STRINGS: Final = 1000
"""The most strings between delimiters in one call. The cost of each grows with the call's length."""


def read_response_template(template: Any) -> tuple[ToolFormat | None, ReasoningFormat | None]:
    """Converts a template. A format is None if the template does not describe it.

    Raises:
        ValueError: the template is malformed.
    """
    fields = load_response_template(template).fields
    content = fields.get("content")
    marks = (content.open_re, content.close_re) if content else ()
    drop = "|".join(_pattern(mark) for mark in marks if mark)
    thoughts = next((fields[name] for name in _REASONING_FIELDS if name in fields), None)
    reasoning = None
    if thoughts and thoughts.close_literals:
        reasoning = ReasoningFormat(
            starts=tuple(thoughts.open_literals or ("<think>",)),
            ends=tuple(thoughts.close_literals),
            opening=_pattern(thoughts.open_re) if thoughts.open_re else "",
            drop=drop,
            is_open_at_start=thoughts.open_re is None,
            strips_reasoning=True,
        )
    calls = fields.get("tool_calls")
    if calls is None or calls.open_re is None:
        return None, reasoning
    close = _pattern(calls.close_re) if calls.close_re else r"(?!)"
    return ToolFormat(opening=_pattern(calls.open_re), read=_reader(calls), close=close), reasoning


def _pattern(compiled: Any) -> str:
    """Returns the pattern, without the blanks before it, which `OutputParser` drops itself."""
    pattern = compiled.pattern.removeprefix("\\s*")
    looks_around = regex.search(r"\(\?<?[=!]", pattern) is not None
    if looks_around or not all(found[0] for found in compiled.finditer(printable)):
        raise ValueError(f"{pattern!r} may match an empty text")
    return f"(?:{pattern})"


def _reader(field: Any) -> Reader:
    """Returns a reader of a call's text that reads it as transformers does."""
    delimiters = field.content_args.get("string_delims", ())

    def read(opening: Found, text: str, functions: Functions) -> list[Call]:
        captures = {name: found for name, found in opening.groupdict().items() if found is not None}
        try:
            if sum(text.count(begin) for begin, _ in delimiters) > _MOST_STRINGS:
                raise ValueError("too many strings")
            value = process_field(text, field, captures)
            if is_nested_deeper(value, MOST_LEVELS):
                raise JsonDepthError
            found = value if isinstance(value, list) else [value]
            items = [item.get("function", item) for item in found]
            return [write_typed_call(item["name"], item["arguments"], functions) for item in items]
        except (KeyError, TypeError, AttributeError, RecursionError) as err:
            raise ValueError("no call") from err

    return read
