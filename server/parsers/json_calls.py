"""Reads tool calls that are written as JSON objects, as they arrive."""

import re
from typing import Final, Literal, NamedTuple

from server.parsers.events import CallArguments, CallStart, Content, EventBuffer
from server.parsers.json_text import is_unicode, read_json
from server.parsers.json_value import JsonValueEnd

_State = Literal["open", "key", "colon", "value", "done"]

_NEXT_CALL_OR_END: Final = re.compile(r"[{\]]")


class CallStyle(NamedTuple):
    """How a format writes the object of a call."""

    argument_keys: tuple[str, ...] = ("arguments",)
    unwraps_text: bool = False
    """Whether arguments that are a JSON string contain the JSON of the arguments."""
    may_omit_arguments: bool = False
    """Whether an object with a name and nothing else is a call."""


class CallObject(EventBuffer):
    """One `{"name": …, "arguments": …}`, with keys in any order and further keys ignored.

    The call starts once its name is known and its arguments begin; until then its text can become content.
    """

    def __init__(self, style: CallStyle) -> None:
        super().__init__()
        self._style = style
        self._state: _State = "open"
        self._raw: list[str] = []
        self._key = ""
        self._value: JsonValueEnd | None = None
        self._pieces: list[str] = []
        self._name: str | None = None
        self._has_other_keys = False
        self._arguments: str | None = None
        self._is_streaming = False
        self.has_started = False

    @property
    def is_done(self) -> bool:
        """Whether the object is complete, or no object that a call could be."""
        return self._state == "done"

    def feed(self, text: str) -> str:
        """Reads the object's next piece; returns the text behind the object once it is done."""
        while text and self._state != "done":
            rest = self._step(text)
            if not self.has_started:
                self._raw.append(text[: len(text) - len(rest)])
            text = rest
        return text

    @property
    def raw_text(self) -> str:
        """The text so far; none once the call has started."""
        return "" if self.has_started else "".join(self._raw)

    def _step(self, text: str) -> str:
        if self._state == "value":
            return self._read_value(text)
        bare = text.lstrip()
        if not bare:
            return ""
        char, rest = bare[0], bare[1:]
        if self._state == "open" and char == "{":
            self._state = "key"
        elif self._state == "key" and char == '"':
            return self._begin_value(bare, key="")
        elif self._state == "key" and char == ",":
            pass
        elif self._state == "key" and char == "}":
            self._end_object()
        elif self._state == "colon" and char == ":":
            return self._begin_value(rest, key=self._key)
        else:
            self._state = "done"
            return bare
        return rest

    def _begin_value(self, text: str, *, key: str) -> str:
        """The next text is the value of this key; the empty key stands for a key itself."""
        self._state, self._key = "value", key
        self._value, self._pieces = JsonValueEnd(), []
        if self._is_argument:
            self._start_call()
        return text

    @property
    def _is_argument(self) -> bool:
        return self._key in self._style.argument_keys and self._arguments is None

    def _start_call(self) -> None:
        if self._name is not None:
            self.has_started = True
            self._events.append(CallStart(self._name))

    def _end_object(self) -> None:
        self._state = "done"
        can_start = self._style.may_omit_arguments and not self._has_other_keys
        if not self.has_started and self._name is not None and can_start:
            self._start_call()
            self._events.append(CallArguments("{}"))

    def _read_value(self, text: str) -> str:
        assert self._value is not None
        end = self._value.find(text)
        piece, rest = (text, "") if end is None else (text[:end], text[end:])
        if self.has_started and self._is_argument:
            self._stream(piece)
        else:
            self._pieces.append(piece)
        if end is not None:
            self._end_value("".join(self._pieces))
        return rest

    def _stream(self, piece: str) -> None:
        """Passes arguments on without the blanks before their value."""
        if not self._is_streaming and not self._pieces:
            piece = piece.lstrip()
            if not piece:
                return
            self._is_streaming = not (piece[0] == '"' and self._style.unwraps_text)
        if self._is_streaming:
            self._events.append(CallArguments(piece))
        else:
            self._pieces.append(piece)

    def _end_value(self, value: str) -> None:
        key = self._key
        self._state = "key"
        if key == "":
            self._key, self._state = _text(value) or "?", "colon"
        elif self._is_argument:
            self._end_arguments(value.strip())
        elif key != "name":
            self._has_other_keys = True
        elif self._name is None:
            self._name = _text(value)
            if not self._name:
                self._state = "done"
            elif self._arguments is not None:
                self._start_call()
                self._events.append(CallArguments(self._arguments))

    def _end_arguments(self, value: str) -> None:
        """Keeps arguments that have not been passed on yet."""
        text = _text(value) if self._style.unwraps_text else None
        self._arguments = value if text is None else text
        if self.has_started and not self._is_streaming:
            self._events.append(CallArguments(self._arguments))


class CallArray(EventBuffer):
    """Objects of `CallObject` between `[` and `]`. Other text in a list that has a call is content."""

    def __init__(self, style: CallStyle) -> None:
        super().__init__()
        self._style = style
        self._call: CallObject | None = None
        self._is_open = False
        self._is_damaged = False
        self._raw: list[str] = []
        self._damage: list[str] = []
        self.is_done = False
        self.has_started = False

    def feed(self, text: str) -> str:
        """Reads the array's next piece; returns the text behind the array once it is done."""
        while text and not self.is_done:
            if self._call is not None:
                text = self._read_call(text, self._call)
            else:
                text = self._read_damage(text) if self._is_damaged else self._read_between(text)
        return text

    @property
    def raw_text(self) -> str:
        """The text so far; once a call has started, that of a later call that has not."""
        return "".join(self._raw) + ("" if self._call is None else self._call.raw_text)

    def _read_between(self, text: str) -> str:
        bare = text.lstrip()
        self._keep(text[: len(text) - len(bare)])
        if not bare:
            return ""
        char = bare[0]
        if char == "{" and self._is_open:
            self._call = CallObject(self._style)
            return bare
        if char not in (",]" if self._is_open else "["):
            return self._read_damage(bare)
        self._keep(char)
        self._is_open = True
        self.is_done = char == "]"
        return bare[1:]

    def _keep(self, text: str) -> None:
        """Keeps the text of a list that may turn out to have no call."""
        if not self.has_started:
            self._raw.append(text)

    def _read_damage(self, text: str) -> str:
        """Text that no list has; calls may follow it, if there was one before."""
        if not self.has_started:
            self.is_done = True
            return text
        found = _NEXT_CALL_OR_END.search(text)
        self._is_damaged = found is None
        cut = len(text) if found is None else found.start()
        if cut:
            self._events.append(Content(text[:cut]))
        return text[cut:]

    def _read_call(self, text: str, call: CallObject) -> str:
        rest = call.feed(text)
        if call.has_started and not self.has_started:
            self._start()
        self._events += call.take_events()
        if call.is_done:
            self._call = None
            if not call.has_started:
                self._keep_damage(call.raw_text)
        return rest

    def _start(self) -> None:
        """The first call has started: what was kept is no content, but for damaged objects."""
        if self._damage:
            self._events.append(Content("".join(self._damage)))
        self.has_started, self._raw, self._damage = True, [], []

    def _keep_damage(self, text: str) -> None:
        if self.has_started:
            self._events.append(Content(text))
        else:
            self._raw.append(text)
            self._damage.append(text)


def _text(value: str) -> str | None:
    """The text of a JSON string; None for other values, and for text that no answer can hold."""
    try:
        text = read_json(value)
    except ValueError:
        return None
    return text if isinstance(text, str) and is_unicode(text) else None
