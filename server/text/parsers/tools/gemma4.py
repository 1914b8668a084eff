"""Parses Gemma 4's calls: `<|tool_call>call:NAME{KEY:<|"|>TEXT<|"|>,KEY:NUMBER}<tool_call|>`."""

from collections.abc import Sequence
from typing import Any, Final

import regex

from server.text.parsers.arguments import ArgumentsWriter, SchemaValues, argument_schemas
from server.text.parsers.base import FunctionSignature
from server.text.parsers.text_parser import Found, StrayText, TextParser, Waiting

_CALL: Final = regex.compile(r"<\|tool_call>\s{0,16}call:\s{0,16}(?P<name>[^\s<>{}()]{1,256})[{(]")
_QUOTE: Final = regex.compile(r'<\|"\|>')
_VALUE_START: Final = regex.compile(r'<\|"\|>|[{\[]')
_BARE_END: Final = regex.compile(r"(?=[,}\]]|<tool_call\|>)")
_KEY_CHARACTER: Final = r'[^\s<>{}\[\]:,|"]'
_KEY: Final = rf'(?:<\|"\|>)?(?<!{_KEY_CHARACTER})(?P<key>{_KEY_CHARACTER}{{1,256}}+)(?:<\|"\|>)?:\s{{0,16}}'
"""Matches only at the start of a word. Otherwise, a search would try each character of a long word."""
_ARGUMENT: Final = regex.compile(
    rf"[\s,]{{0,16}}+{_KEY}|\s{{0,16}}+[)}}]?\s{{0,16}}+(?:<tool_call\|>|(?=<\|tool_call>))"
)
_MEMBER: Final = regex.compile(rf"[\s,]{{0,16}}+(?:{_KEY}|}})")
_ITEM: Final = regex.compile(r"[\s,]{0,16}(?:(?P<end>\])|(?=[^\s,]))")

_MOST_NESTED: Final = 64
"""The most levels of nested values. A deeper value counts as text."""


class _Damaged(Exception):  # noqa: N818 - it ends a value, and is no error
    """A value ends too early, or the text cannot be a value."""


class Gemma4Parser(TextParser):
    """Writes arguments that are text as they arrive, and other arguments when they are complete."""

    def __init__(self, functions: Sequence[FunctionSignature]) -> None:
        self._functions = functions
        self._values = SchemaValues()
        super().__init__()

    def read(self) -> Waiting[None]:
        while call := (yield from self.text.find(_CALL, self.add_content)):
            yield from self._read_call(call["name"])

    def _read_call(self, name: str) -> Waiting[None]:
        self.start_call(name)
        arguments = ArgumentsWriter(self.add_arguments, argument_schemas(self._functions, name), self._values)
        while found := (yield from self.text.find(_ARGUMENT, StrayText(self), keeps_incomplete=False)):
            if found["key"] is None:
                break
            if not (yield from self._read_argument(found["key"], arguments)):
                return
        arguments.close()

    def _read_argument(self, key: str, arguments: ArgumentsWriter) -> Waiting[bool]:
        """Reads an argument. Returns whether it is complete."""
        if (yield from self.text.expect(_QUOTE)):
            arguments.open_text(key)
            if (yield from self.text.find(_QUOTE, arguments.add_text)) is None:
                return False
            arguments.close_text()
            return True
        try:
            arguments.add_value(key, (yield from self._read_value(0)))
        except _Damaged:
            return False
        return True

    def _read_value(self, depth: int, *, may_be_empty: bool = True) -> Waiting[Any]:
        start = (yield from self.text.expect(_VALUE_START)) if depth < _MOST_NESTED else None
        if start is None:
            text = yield from self._read_text(_BARE_END)
            if not text and not may_be_empty:
                raise _Damaged  # a bracket that closes nothing here: a list would get endless empty items
            return text.strip()
        if start[0] == "{":
            return (yield from self._read_object(depth))
        if start[0] == "[":
            return (yield from self._read_array(depth))
        return (yield from self._read_text(_QUOTE))

    def _read_text(self, end: regex.Pattern[str]) -> Waiting[str]:
        parts: list[str] = []
        if (yield from self.text.find(end, parts.append)) is None:
            raise _Damaged
        return "".join(parts)

    def _read_object(self, depth: int) -> Waiting[dict[str, Any]]:
        members: dict[str, Any] = {}
        while (member := (yield from self._expect(_MEMBER)))["key"] is not None:
            members[member["key"]] = yield from self._read_value(depth + 1)
        return members

    def _read_array(self, depth: int) -> Waiting[list[Any]]:
        items: list[Any] = []
        while (yield from self._expect(_ITEM))["end"] is None:
            items.append((yield from self._read_value(depth + 1, may_be_empty=False)))
        return items

    def _expect(self, pattern: regex.Pattern[str]) -> Waiting[Found]:
        found = yield from self.text.expect(pattern)
        if found is None:
            raise _Damaged
        return found
