"""Reads tool calls that are written as JSON objects, as they arrive."""

from collections.abc import Callable
from typing import Final, NamedTuple

import regex

from server.parsers.base import CallArguments, CallStart, Content, Event
from server.parsers.incoming_text import BLANKS, IncomingText, Waiting
from server.parsers.json_text import JsonValueEnd, is_unicode, read_json

_OBJECT: Final = regex.compile(r"\{")
_KEY_OR_END: Final = regex.compile(r'(?=")|[,}]')
_COLON: Final = regex.compile(":")
_QUOTE: Final = regex.compile('(?=")')
_LIST: Final = regex.compile(r"\[")
_CALL_OR_END: Final = regex.compile(r"(?=\{)|[,\]]")
_NEXT_CALL_OR_END: Final = regex.compile(r"(?=[{\]])")


class CallStyle(NamedTuple):
    """How a format writes the object of a call."""

    argument_keys: tuple[str, ...] = ("arguments",)
    unwraps_text: bool = False
    """Whether arguments that are a JSON string contain the JSON of the arguments."""
    may_omit_arguments: bool = False
    """Whether an object with a name and nothing else is a call."""


class JsonCalls:
    """Reads one call or a list of calls.

    A call starts once its name is known and its arguments begin; until then its text can become content.
    """

    def __init__(self, text: IncomingText, style: CallStyle, report: Callable[[Event], None]) -> None:
        self._text = text
        self._style = style
        self._report = report
        self._raw: list[str] = []
        self._damage: list[str] = []
        """Objects that are no calls, in a list without a call so far; content once a call starts."""
        self.has_started = False
        """Whether a call has started."""
        self._name: str | None = None
        """Of the open object, as are the following."""
        self._arguments: str | None = None
        self._has_other_keys = False
        self._is_call = False

    @property
    def raw_text(self) -> str:
        """The text that has been read and is no part of a call, without what lists have between calls."""
        return "".join(self._raw)

    def read_list(self) -> Waiting[None]:
        """Objects of `read_call` between `[` and `]`. Other text in a list that has a call is content."""
        if (yield from self._next(_LIST)) is None:
            return
        while (mark := (yield from self._next(_CALL_OR_END))) != "]":
            if self.has_started:
                self._raw.clear()
            if mark == "":
                yield from self._read_listed_call()
            elif mark is None and not (yield from self._pass_damage()):
                return
        if self.has_started:
            self._raw.clear()

    def _read_listed_call(self) -> Waiting[None]:
        begin = len(self._raw)
        yield from self.read_call()
        if self._is_call:
            return
        damage = "".join(self._raw[begin:])
        if self.has_started:
            self._raw.clear()
            self._report(Content(damage))
        else:
            self._damage.append(damage)

    def _pass_damage(self) -> Waiting[bool]:
        """Passes on text that no list has; calls may follow it, if there was one before."""
        if not self.has_started:
            return False
        found = yield from self._text.find(_NEXT_CALL_OR_END, lambda text: self._report(Content(text)))
        return found is not None

    def read_call(self) -> Waiting[None]:
        """One `{"name": …, "arguments": …}`, with keys in any order and further keys ignored."""
        self._name = self._arguments = None
        self._is_call = self._has_other_keys = False
        yield from self._read_object()
        if self._is_call:
            self._raw.clear()

    def _read_object(self) -> Waiting[None]:
        mark = yield from self._next(_OBJECT)
        while mark is not None:
            mark = yield from self._next(_KEY_OR_END)
            if mark == "}":
                return self._end_object()
            if mark == "" and not (yield from self._read_member()):
                return None

    def _end_object(self) -> None:
        can_start = self._style.may_omit_arguments and not self._has_other_keys
        if not self._is_call and self._name is not None and can_start:
            self._start(self._name, "{}")

    def _read_member(self) -> Waiting[bool]:
        """Whether the object can be a call."""
        key = _text((yield from self._read_value()) or "")
        if (yield from self._next(_COLON)) is None:
            return False
        is_argument = key in self._style.argument_keys and self._arguments is None
        if is_argument and self._name is not None:
            self._arguments = ""
            self._start(self._name, "")
            yield from self._pass_arguments()
            return True
        value = yield from self._read_value()
        if value is None:
            return False
        if is_argument:
            self._arguments = self._unwrapped(value)
        elif key != "name":
            self._has_other_keys = True
        elif self._name is None:
            self._name = _text(value)
            if self._name and self._arguments is not None:
                self._start(self._name, self._arguments)
            return bool(self._name)
        return True

    def _start(self, name: str, arguments: str) -> None:
        self._is_call = self.has_started = True
        self._report(Content("".join(self._damage)))
        self._damage.clear()
        self._report(CallStart(name))
        self._report(CallArguments(arguments))

    def _pass_arguments(self) -> Waiting[None]:
        """Passes arguments on as they arrive, without the blanks before their value."""
        yield from self._text.read_all(BLANKS)
        if self._style.unwraps_text and (yield from self._text.expect(_QUOTE)):
            value = yield from self._read_value()
            if value is not None:
                self._report(CallArguments(self._unwrapped(value)))
        else:
            yield from read_value(self._text, lambda text: self._report(CallArguments(text)))

    def _unwrapped(self, arguments: str) -> str:
        text = _text(arguments) if self._style.unwraps_text else None
        return arguments.strip() if text is None else text

    def _next(self, pattern: regex.Pattern[str]) -> Waiting[str | None]:
        """What follows the blanks, if it matches."""
        self._raw.append((yield from self._text.read_all(BLANKS)))
        found = yield from self._text.expect(pattern)
        if found is None:
            return None
        self._raw.append(found[0])
        return found[0]

    def _read_value(self) -> Waiting[str | None]:
        """A JSON value; None if it is not complete."""
        parts: list[str] = []
        is_complete = yield from read_value(self._text, parts.append)
        self._raw += parts
        return "".join(parts) if is_complete else None


def read_value(
    text: IncomingText, passed: Callable[[str], None], stop: regex.Pattern[str] | None = None
) -> Waiting[bool]:
    """Passes on a JSON value as it arrives; False if it ends with the text, or before a match of `stop`."""
    value, end = JsonValueEnd(), None
    while end is None and (piece := (yield from text.take(stop))):
        end = value.find(piece)
        passed(piece[:end])
        if end is not None:
            text.give_back(piece[end:])
    return end is not None


def _text(value: str) -> str | None:
    """The text of a JSON string; None for other values, and for text that no answer can hold."""
    try:
        text = read_json(value)
    except ValueError:
        return None
    return text if isinstance(text, str) and is_unicode(text) else None
