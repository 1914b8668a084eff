"""Reads tool calls that are JSON objects, while the text arrives."""

import re
from collections.abc import Callable
from typing import Final, Literal, NamedTuple

import regex

from server.text.parsers.base import CallArguments, CallStart, Content, Event
from server.text.parsers.json_text import is_unicode, read_json
from server.text.parsers.text_parser import BLANKS, Found, IncomingText, Waiting

_OBJECT: Final = regex.compile(r"\{")
_MEMBER: Final = regex.compile(r'[,}]|(?=")')
_COLON: Final = regex.compile(":")
_QUOTE: Final = regex.compile(r'(?=")')
_LIST: Final = regex.compile(r"\[")
_ITEM: Final = regex.compile(r"[,\]]|(?=\{)")
_NEXT_CALL_OR_END: Final = regex.compile(r"(?=[{\]])")


class CallStyle(NamedTuple):
    """How a format's calls differ from `{"name": …, "arguments": …}`."""

    argument_keys: tuple[str, ...] = ("arguments",)
    unwraps_text: bool = False
    """Whether the arguments may be a JSON string that contains JSON."""
    may_omit_arguments: bool = False
    """Whether an object with only a name is a call."""


class CallReader:
    """The base of `CallObject` and `CallArray`. Until a call starts, the text may still become content."""

    def __init__(self, text: IncomingText, style: CallStyle, add: Callable[[Event], None]) -> None:
        self._text = text
        self._style = style
        self._add = add
        self._raw: list[str] = []
        self.has_started = False

    @property
    def raw_text(self) -> str:
        """The text that has been read. Empty once a call has started."""
        return "" if self.has_started else "".join(self._raw)

    def read(self) -> Waiting[None]:
        """Reads to the end of the calls, or to text that cannot be a call."""
        raise NotImplementedError

    def _keep(self, text: str) -> None:
        if not self.has_started:
            self._raw.append(text)

    def _expect(self, pattern: regex.Pattern[str]) -> Waiting[Found | None]:
        """Reads blanks, then a match of the pattern. Returns None if the pattern does not match."""
        self._keep((yield from self._text.expect_all(BLANKS)))
        found = yield from self._text.expect(pattern)
        self._keep(found[0] if found else "")
        return found


class CallObject(CallReader):
    """Reads one `{"name": …, "arguments": …}`. Its keys may be in any order, and other keys are ignored.

    The call starts as soon as its name is known and its arguments begin.
    """

    def __init__(self, text: IncomingText, style: CallStyle, add: Callable[[Event], None]) -> None:
        super().__init__(text, style, add)
        self._name: str | None = None
        self._arguments: str | None = None
        self._has_other_keys = False

    def read(self) -> Waiting[None]:
        if not (yield from self._expect(_OBJECT)):
            return
        while member := (yield from self._expect(_MEMBER)):
            if member[0] == "}":
                return self._end()
            if not member[0] and not (yield from self._read_member()):
                return

    def _read_member(self) -> Waiting[bool]:
        """Reads a member. Returns whether the object can still be a call."""
        key = _text((yield from self._read_value()) or "")
        if not (yield from self._expect(_COLON)):
            return False
        if self._arguments is None and key in self._style.argument_keys:
            self._arguments = yield from self._read_arguments()
            return self._arguments is not None
        value = yield from self._read_value()
        if key != "name":
            self._has_other_keys = True
            return True
        if self._name is None:
            self._name = _text(value or "")
            if self._name and self._arguments is not None:
                self._start(self._name, self._arguments)
        return bool(self._name)

    def _start(self, name: str, arguments: str = "") -> None:
        self.has_started = True
        self._add(CallStart(name))
        if arguments:
            self._add(CallArguments(arguments))

    def _end(self) -> None:
        can_start = self._style.may_omit_arguments and not self._has_other_keys
        if self._name and not self.has_started and can_start:
            self._start(self._name, "{}")

    def _read_arguments(self) -> Waiting[str | None]:
        """Reads arguments. If the call's name is known, adds them to the events as they arrive.

        Returns None if the text ends within the arguments.
        """
        if self._name:
            self._start(self._name)
        self._keep((yield from self._text.expect_all(BLANKS)))
        is_text = self._style.unwraps_text and bool((yield from self._text.expect(_QUOTE)))
        if self._name and not is_text:
            return (yield from self._read_value(lambda text: self._add(CallArguments(text))))
        value = yield from self._read_value()
        text = _text(value or "") if is_text else None
        arguments = value if text is None else text
        if self._name and arguments is not None:
            self._add(CallArguments(arguments))
        return arguments

    def _read_value(self, passed: Callable[[str], None] | None = None) -> Waiting[str | None]:
        """Reads a value, and passes its parts to `passed` as they arrive.

        Returns None if the text ends within the value.
        """
        value, end, parts = JsonValueEnd(), None, []
        while end is None:
            text = yield from self._text.take()
            if not text:
                return None
            end = value.find(text)
            self._keep(text[:end])
            if passed:
                passed(text[:end])
            else:
                parts.append(text[:end])
        self._text.give_back(text[end:])
        return "".join(parts).strip()


class CallArray(CallReader):
    """Reads calls between `[` and `]`. If there is a call, all other text in the list becomes content."""

    def __init__(self, text: IncomingText, style: CallStyle, add: Callable[[Event], None]) -> None:
        super().__init__(text, style, add)
        self._damage: list[str] = []
        """Objects before the first call that are not calls themselves."""

    def read(self) -> Waiting[None]:
        if not (yield from self._expect(_LIST)):
            return
        while True:
            item = yield from self._expect(_ITEM)
            if item is None:
                if not self.has_started or not (yield from self._text.find(_NEXT_CALL_OR_END, self._add_content)):
                    return
            elif item[0] == "]":
                return
            elif not item[0]:
                yield from self._read_call()

    def _read_call(self) -> Waiting[None]:
        call = CallObject(self._text, self._style, self._add_of_call)
        yield from call.read()
        if self.has_started:
            self._add_content(call.raw_text)
        else:
            self._raw.append(call.raw_text)
            self._damage.append(call.raw_text)

    def _add_of_call(self, event: Event) -> None:
        """Adds an event of a call. If the call is the first, damaged objects before it become content."""
        if not self.has_started:
            self.has_started = True
            self._add_content("".join(self._damage))
        self._add(event)

    def _add_content(self, text: str) -> None:
        if text:
            self._add(Content(text))


def _text(value: str) -> str | None:
    """Returns the text of a JSON string. None if the value is no string, or the text is not valid Unicode."""
    try:
        text = read_json(value)
    except ValueError:
        return None
    return text if isinstance(text, str) and is_unicode(text) else None


_SPACE: Final = re.compile(r"\s*")
_IN_STRING: Final = re.compile(r'["\\]')
_IN_CONTAINER: Final = re.compile(r'["{}\[\]<]')
_AFTER_LITERAL: Final = re.compile(r"[\s,\]}<]")


class JsonValueEnd:
    """Finds the end of one JSON value by counting brackets. Checks nothing else.

    The value also ends before a `<` outside of strings. JSON has no `<` there, so a marker has begun.
    """

    def __init__(self) -> None:
        self._state: Literal["before", "container", "string", "escape", "literal", "done"] = "before"
        self._depth = 0

    def find(self, text: str) -> int | None:
        """Reads the next piece. Returns the index at which the value ends, or None if the value continues."""
        position = 0
        while position < len(text) and self._state != "done":
            if self._state == "before":
                position = self._begin(text, position)
            elif self._state == "string":
                position = self._read_string(text, position)
            elif self._state == "escape":
                self._state, position = "string", position + 1
            else:
                position = self._read_outside(text, position)
        return position if self._state == "done" else None

    def _begin(self, text: str, position: int) -> int:
        position += len(_SPACE.match(text, position)[0])  # type: ignore[index]
        first = text[position : position + 1]
        if first == '"':
            self._state = "string"
        elif first in ("{", "["):
            self._state, self._depth = "container", 1
        elif first:
            self._state = "literal"
            return position
        return position + 1

    def _read_string(self, text: str, position: int) -> int:
        found = _IN_STRING.search(text, position)
        if found is None:
            return len(text)
        if found[0] == "\\":
            self._state = "escape"
        else:
            self._state = "container" if self._depth else "done"
        return found.end()

    def _read_outside(self, text: str, position: int) -> int:
        """Reads a list, an object or a literal, up to the next character that may change the state."""
        is_literal = self._state == "literal"
        found = (_AFTER_LITERAL if is_literal else _IN_CONTAINER).search(text, position)
        if found is None:
            return len(text)
        if is_literal or found[0] == "<":
            self._state = "done"
            return found.start()
        if found[0] == '"':
            self._state = "string"
        else:
            self._depth += 1 if found[0] in "{[" else -1
            if not self._depth:
                self._state = "done"
        return found.end()
