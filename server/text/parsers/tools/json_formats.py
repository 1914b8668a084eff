"""Parsers of formats whose calls are JSON after a marker."""

from collections.abc import Mapping, Sequence
from functools import cache
from secrets import choice
from string import ascii_letters, digits
from typing import ClassVar, Final

import regex

from server.text.parsers.base import CallArguments, CallFormat, CallStart, Content, Event, FunctionSignature
from server.text.parsers.json_calls import CallArray, CallObject, CallReader, CallStyle, JsonValueEnd
from server.text.parsers.text_parser import BLANKS, TextReader, Waiting, any_of


class MarkedCalls(TextReader):
    """Reads the call after each marker, as JSON in `style` unless a subclass overrides `read_calls`.

    Text around calls is content, except blanks after a call. The end marker of a call may be missing.
    """

    needs_special_tokens: ClassVar[bool] = True
    call_format: ClassVar[CallFormat | None] = None
    markers: ClassVar[Mapping[str, str]]
    """Start marker -> end marker, which is empty if the format has none."""
    bare_starts: ClassVar[str] = ""
    """Characters with which calls may begin without a marker."""
    separators: ClassVar[str] = ""
    """Characters that are dropped after a call, in addition to blanks."""
    style: ClassVar[CallStyle] = CallStyle()

    def __init__(self, functions: Sequence[FunctionSignature]) -> None:
        self._gap = ""
        """Blanks and separators after a call. They become content if other text follows."""
        super().__init__()

    def read(self) -> Waiting[None]:
        while opening := (yield from self.text.find(start_pattern(*self.markers, bare=self.bare_starts), self.pass_on)):
            start = yield from self._read_longer(opening[0])
            self._gap = ""
            if (yield from self.read_calls(start)):
                yield from self._read_gap(self.markers.get(start, ""))

    def read_calls(self, start: str) -> Waiting[bool]:
        """Reads the text after the marker `start`. Returns whether a call has started."""
        return (yield from self.read_body(CallObject, self.style, start))

    def read_body(self, reader: type[CallReader], style: CallStyle, start: str) -> Waiting[bool]:
        """Reads calls with `reader`. If no call starts, `start` and the text after it become content."""
        body = reader(self.text, style, self.add_event)
        yield from body.read()
        if not body.has_started:
            self.pass_on(start + body.raw_text)
        return body.has_started

    def pass_on(self, text: str) -> None:
        """Adds content, which is text that belongs to no call."""
        if text:
            self.add_text(Content(self._gap + text))
            self._gap = ""

    def _read_longer(self, start: str) -> Waiting[str]:
        """Reads the rest of a longer marker that begins with `start`. Returns this marker or `start`."""
        for longer in self.markers:
            is_longer = bool(start) and longer != start and longer.startswith(start)
            if is_longer and (yield from self.text.expect(any_of(longer[len(start) :]))):
                return longer
        return start

    def _read_gap(self, end: str) -> Waiting[None]:
        gap = yield from self.text.expect_all(BLANKS)
        if end and (yield from self.text.expect(any_of(end))):
            gap = ""
        self._gap = gap + (yield from self.text.expect_all(_characters(self.separators + " \t\r\n")))


class MarkedArray(MarkedCalls):
    """Reads a list of calls after the marker."""

    def read_calls(self, start: str) -> Waiting[bool]:
        return (yield from self.read_body(CallArray, self.style, start))


@cache
def start_pattern(*starts: str, bare: str = "") -> regex.Pattern[str]:
    """Returns a pattern that matches any marker, or the empty text before a character in `bare`."""
    markers = any_of(*starts)
    return regex.compile(f"{markers.pattern}|(?=[{regex.escape(bare)}])") if bare else markers


@cache
def _characters(characters: str) -> regex.Pattern[str]:
    return regex.compile(f"[{regex.escape(characters)}]{{1,64}}")


def _format(start: str, end: str) -> CallFormat:
    head = '{"name": "NAME", "arguments": '
    return CallFormat(start, ("\n" + head, head), ("}\n" + end, "}" + end))


class HermesParser(MarkedCalls):
    """`<tool_call>{"name": …, "arguments": …}</tool_call>`: Hermes, Qwen2.5, Qwen3, SmolLM and others."""

    markers = {"<tool_call>": "</tool_call>"}
    call_format = _format("<tool_call>", "</tool_call>")


class Granite4Parser(MarkedCalls):
    """Like Hermes, but the arguments may be a JSON string that contains JSON."""

    markers = HermesParser.markers
    call_format = HermesParser.call_format
    style = CallStyle(unwraps_text=True)


class Gigachat3Parser(MarkedCalls):
    """`<|function_call|>{"name": …, "arguments": …}`. In version 3.0, the message's role is the marker."""

    markers = {"<|function_call|>": "", "function call<|role_sep|>\n": ""}


class GraniteParser(MarkedArray):
    """Granite 3.0 and 3.1: a marker and a list of calls."""

    markers = {"<|tool_call|>": "", "<tool_call>": ""}
    style = CallStyle(may_omit_arguments=True)


class Granite20bParser(MarkedCalls):
    """granite-20b-functioncalling: a marker before each call."""

    needs_special_tokens = False
    markers = {"<function_call>": ""}


class InternlmParser(MarkedCalls):
    """`<|action_start|><|plugin|>{"name": …, "parameters": …}<|action_end|>`."""

    markers = {"<|action_start|><|plugin|>": "<|action_end|>"}
    style = CallStyle(("parameters", "arguments"), may_omit_arguments=True)


class JambaParser(MarkedArray):
    """`<tool_calls>[…]</tool_calls>`."""

    markers = {"<tool_calls>": "</tool_calls>"}


class LlamaJsonParser(MarkedCalls):
    """`{"name": …, "parameters": …}; …`: Llama 3 and 4 with JSON, with or without `<|python_tag|>`.

    Every JSON object with a name and parameters is a call, wherever it is in the text.
    """

    needs_special_tokens = False
    markers = {"<|python_tag|>": ""}
    bare_starts = "{"
    separators = ";"
    style = CallStyle(("arguments", "parameters"))


class Phi4MiniParser(MarkedArray):
    """`functools[…]`."""

    needs_special_tokens = False
    markers = {"functools": ""}
    style = CallStyle(("arguments", "parameters"))


class XlamParser(MarkedArray):
    """A list of calls anywhere in the text, bare or in one of several wrappings."""

    needs_special_tokens = False
    markers = {"```json": "```", "```": "```", "[TOOL_CALLS]": "", "<tool_call>": "</tool_call>"}
    bare_starts = "["
    style = CallStyle(unwraps_text=True)


_CALLS_BEGIN: Final = "<｜tool▁calls▁begin｜>"
_CALLS_END: Final = "<｜tool▁calls▁end｜>"
_CALL_BEGIN: Final = "<｜tool▁call▁begin｜>"
_CALL_END: Final = "<｜tool▁call▁end｜>"
_SEPARATOR: Final = "<｜tool▁sep｜>"


class DeepseekV31Parser(MarkedCalls):
    """`NAME<｜tool▁sep｜>ARGUMENTS`."""

    markers = {_CALLS_BEGIN + _CALL_BEGIN: _CALLS_END, _CALL_BEGIN: _CALLS_END}
    call_format = CallFormat(_CALL_BEGIN, (f"NAME{_SEPARATOR}",), (_CALL_END,))
    head: ClassVar = regex.compile(rf"(?P<name>[^<>]{{1,512}}+){_SEPARATOR}")
    end: ClassVar = regex.compile(_CALL_END)

    def read_calls(self, start: str) -> Waiting[bool]:
        head = yield from self.text.expect(self.head)
        if head is None:
            self.pass_on(start)
            return False
        self.add_event(CallStart(head["name"]))
        yield from self.text.find(self.end, lambda text: self.add_text(CallArguments(text)), keeps_incomplete=False)
        return True


class DeepseekV3Parser(DeepseekV31Parser):
    """`function<｜tool▁sep｜>NAME`, then the arguments in a code block."""

    call_format = CallFormat(_CALL_BEGIN, (f"function{_SEPARATOR}NAME\n```json\n",), ("\n```" + _CALL_END,))
    head: ClassVar = regex.compile(rf"function{_SEPARATOR}(?P<name>[^<>\n]{{1,512}}+)\n```json\n")
    end: ClassVar = regex.compile(rf"\n```{_CALL_END}")


_ID_CHARS: Final = ascii_letters + digits
_ID_LENGTH: Final = 9
_MISTRAL_STYLE: Final = CallStyle(unwraps_text=True, may_omit_arguments=True)
_MISTRAL_LIST: Final = regex.compile(r"(?=\[)")
_MISTRAL_OBJECT: Final = regex.compile(r"(?=\{)")
_MISTRAL_HEAD: Final = regex.compile(r"(?P<name>[^\[\]{}]{1,512}+)(?:\[CALL_ID\](?P<id>\w{1,64}+))?(?:\[ARGS\]|(?=\{))")
"""Without `[ARGS]`, the name ends before the first brace."""
_MISTRAL_NEXT_CALL: Final = regex.compile(r"\[TOOL_CALLS\]")


class MistralParser(MarkedCalls):
    """Reads all of Mistral's formats of calls. The text after the marker shows the format.

    Each call gets an id that mistral-common and Mistral's templates accept in a later request.
    """

    markers = {"[TOOL_CALLS]": ""}

    def read_calls(self, start: str) -> Waiting[bool]:
        start += yield from self.text.expect_all(BLANKS)
        if (yield from self.text.expect(_MISTRAL_LIST)):
            return (yield from self.read_body(CallArray, _MISTRAL_STYLE, start))
        if (yield from self.text.expect(_MISTRAL_OBJECT)):
            return (yield from self.read_body(CallObject, _MISTRAL_STYLE, start))
        head = yield from self.text.expect(_MISTRAL_HEAD)
        if head is None:
            self.pass_on(start)
            return False
        self.add_event(CallStart(head["name"].strip(), head["id"]))
        yield from self._read_arguments()
        return True

    def _read_arguments(self) -> Waiting[None]:
        """Reads arguments up to their end, or up to the next call if the JSON is damaged."""
        value, end = JsonValueEnd(), None
        while end is None and (text := (yield from self.text.take(_MISTRAL_NEXT_CALL))):
            end = value.find(text)
            self.add_text(CallArguments(text[:end]))
        if end is not None:
            self.text.give_back(text[end:])

    def add_event(self, event: Event) -> None:
        super().add_event(event._replace(id=event.id or _make_id()) if isinstance(event, CallStart) else event)


def _make_id() -> str:
    return "".join(choice(_ID_CHARS) for _ in range(_ID_LENGTH))
