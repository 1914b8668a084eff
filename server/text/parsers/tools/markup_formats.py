"""Parsers of formats that write each argument between its own markers, as XML does."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import ClassVar, Final

import regex

from server.text.parsers.arguments import ArgumentsWriter, SchemaValues, argument_schemas
from server.text.parsers.base import FunctionSignature
from server.text.parsers.text_parser import Found, StrayText, TextParser, Waiting


@dataclass(frozen=True, kw_only=True)
class Markup:
    """A format's markers as regular expressions. A match has a limited length and a fixed last character."""

    call: str
    """The beginning of a call. The group `name` is the function's name, with blanks around it."""
    argument: str
    """The beginning of an argument. The group `key` is the argument's name, with blanks around it."""
    argument_end: str
    call_end: str
    block: str | None = None
    """The beginning of a group of calls."""
    block_end: str | None = None
    before_value: str | None = None
    """White space that may precede a value and is not a part of it."""
    after_value: str = ""
    """White space that may follow a value and is not a part of it."""
    has_only_known_functions: bool = False
    """Whether calls of functions that are not in the request's `tools` become content."""

    @cached_property
    def opening(self) -> regex.Pattern[str]:
        """Finds the first marker within content."""
        return _any_of(self.call, self.block)

    @cached_property
    def first_call(self) -> regex.Pattern[str]:
        """Finds the first call after the beginning of a group."""
        return regex.compile(rf"\s{{0,64}}(?:{self.call})")

    @cached_property
    def following(self) -> regex.Pattern[str]:
        """Finds the next call of a group, or the end of the group."""
        return regex.compile(rf"\s{{0,64}}(?:{_any_of(self.call, self.block_end).pattern})")

    @cached_property
    def group_end(self) -> regex.Pattern[str]:
        """Finds the end of a group after its last call."""
        return regex.compile(rf"\s{{0,64}}{self.block_end}")

    @cached_property
    def argument_or_end(self) -> regex.Pattern[str]:
        return _any_of(self.argument, self.call_end, self.block_end)

    @cached_property
    def value_begin(self) -> regex.Pattern[str] | None:
        return regex.compile(self.before_value) if self.before_value else None

    @cached_property
    def value_end(self) -> regex.Pattern[str]:
        """Finds the end of a value: its end marker, or else the next marker, which is not consumed."""
        following = _any_of(self.argument, self.call_end)
        return regex.compile(rf"{self.after_value}(?:{self.argument_end}|(?={following.pattern}))")


def _any_of(*patterns: str | None) -> regex.Pattern[str]:
    return regex.compile("|".join(pattern for pattern in patterns if pattern))


class MarkupParser(TextParser):
    """The base of parsers of markup. Each subclass sets `markup`."""

    markup: ClassVar[Markup]

    def __init__(self, functions: Sequence[FunctionSignature]) -> None:
        self._functions = functions
        self._values = SchemaValues()
        self._names = frozenset(function.name for function in functions)
        super().__init__()

    def read(self) -> Waiting[None]:
        while opening := (yield from self.text.find(self.markup.opening, self.add_content)):
            marker = opening[0]
            call: Found | None = opening
            if opening["name"] is None:
                call = yield from self.text.expect(self.markup.first_call)
                marker += call[0] if call else ""
            if call and self._is_callable(call):
                yield from self._read_calls(call)
            else:
                self.add_content(marker)

    def _is_callable(self, call: Found) -> bool:
        return call["name"].strip() in self._names if self.markup.has_only_known_functions else bool(call["name"])

    def _read_calls(self, call: Found) -> Waiting[None]:
        while True:
            yield from self._read_call(call["name"])
            if self.markup.block is None:
                return None
            following = yield from self.text.expect(self.markup.following)
            if following is None:
                return self.text.drop_incomplete(self.markup.group_end)
            if following["name"] is None:
                return None
            if not self._is_callable(following):
                return self.add_content(following[0])
            call = following

    def _read_call(self, name: str) -> Waiting[None]:
        self.start_call(name.strip())
        schemas = argument_schemas(self._functions, name.strip())
        arguments = ArgumentsWriter(self.add_arguments, schemas, self._values)
        while True:
            found = yield from self.text.find(self.markup.argument_or_end, StrayText(self), keeps_incomplete=False)
            if found is None or found["key"] is None:
                return arguments.close()
            if not (yield from self._read_value(found, arguments)):
                return None

    def _read_value(self, opening: Found, arguments: ArgumentsWriter) -> Waiting[Found | None]:
        """Reads a value. If the text ends within it, returns None and leaves the arguments incomplete."""
        arguments.open_text(opening["key"].strip())
        if self.markup.value_begin:
            yield from self.text.expect(self.markup.value_begin)
        if end := (yield from self.text.find(self.markup.value_end, arguments.add_text)):
            arguments.close_text()
        return end


class FunctionGemmaParser(MarkupParser):
    """`<start_function_call>call:NAME{KEY:<escape>VALUE<escape>}<end_function_call>`."""

    markup: ClassVar = Markup(
        call=r"<start_function_call>call:(?P<name>\w{1,256})\{",
        argument=r",?\s{0,16}+(?<!\w)(?P<key>\w{1,256}+):<escape>",
        argument_end="<escape>",
        call_end=r"\}?<end_function_call>",
    )


class Glm45Parser(MarkupParser):
    """GLM 4.5 to 4.7, and Ling 3.

    `<tool_call>NAME<arg_key>KEY</arg_key><arg_value>VALUE</arg_value></tool_call>`.
    """

    markup: ClassVar = Markup(
        call=r"<tool_call>\s{0,64}+(?P<name>[^<>\s][^<>]{0,319}+)(?=<arg_key>|</tool_call>)",
        argument=r"<arg_key>\s{0,64}+(?P<key>[^<>\s][^<>]{0,319}+)</arg_key>\s{0,64}<arg_value>",
        argument_end="</arg_value>",
        call_end="</tool_call>",
        has_only_known_functions=True,
    )


_QWEN3: Final = Markup(
    block="<tool_call>",
    call=r"<function=(?P<name>[^<>]{1,256})>",
    argument=r"<\s{0,4}parameter\s{0,4}=\s{0,4}(?P<key>[^<>]{1,256})>",
    argument_end=r"<\s{0,4}/\s{0,4}parameter\s{0,4}>",
    call_end="</function>",
    block_end="</tool_call>",
    before_value=r"\n",
    after_value=r"\n?",
)


class Qwen3XmlParser(MarkupParser):
    """`<function=NAME><parameter=KEY>VALUE</parameter></function>`: Qwen3-Coder, Step 3.5."""

    markup: ClassVar = _QWEN3


class MimoParser(MarkupParser):
    """Like Qwen3-Coder's format, except that line breaks around a value belong to the value."""

    markup: ClassVar = replace(_QWEN3, before_value=None, after_value="")


class SeedOssParser(MarkupParser):
    """Like Qwen3-Coder's format, with other markers around the calls."""

    markup: ClassVar = replace(_QWEN3, block="<seed:tool_call>", block_end="</seed:tool_call>")
