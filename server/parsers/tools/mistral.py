"""`[TOOL_CALLS]NAME[ARGS]{…}` (tokenizers from v11 on) and `[TOOL_CALLS][{"name": …, "arguments": …}, …]`."""

from secrets import choice
from string import ascii_letters, digits
from typing import Final

import regex

from server.parsers.events import CallArguments, CallStart, Event
from server.parsers.json_calls import CallArray, CallObject, CallStyle, JsonValueEnd
from server.parsers.marked_calls import MarkedCalls
from server.parsers.text_parser import BLANKS, Waiting

_ID_CHARS: Final = ascii_letters + digits
_ID_LENGTH: Final = 9
_STYLE: Final = CallStyle(unwraps_text=True, may_omit_arguments=True)
_LIST: Final = regex.compile(r"(?=\[)")
_OBJECT: Final = regex.compile(r"(?=\{)")
_HEAD: Final = regex.compile(r"(?P<name>[^\[\]{}]{1,512}+)(?:\[CALL_ID\](?P<id>\w{1,64}+))?(?:\[ARGS\]|(?=\{))")
"""Without `[ARGS]`, the first brace ends the name."""
_NEXT_CALL: Final = regex.compile(r"\[TOOL_CALLS\]")


class MistralParser(MarkedCalls):
    """The text behind the marker tells which of the formats it is.

    Each call gets an id with which mistral-common accepts it in a later request.
    """

    markers = {"[TOOL_CALLS]": ""}

    def read_calls(self, start: str) -> Waiting[bool]:
        start += yield from self.text.expect_all(BLANKS)
        if (yield from self.text.expect(_LIST)):
            return (yield from self.read_body(CallArray, _STYLE, start))
        if (yield from self.text.expect(_OBJECT)):
            return (yield from self.read_body(CallObject, _STYLE, start))
        head = yield from self.text.expect(_HEAD)
        if head is None:
            self.pass_on(start)
            return False
        self.add_event(CallStart(head["name"].strip(), head["id"]))
        yield from self._read_arguments()
        return True

    def _read_arguments(self) -> Waiting[None]:
        """Reads up to the end of the value, or to the next call if the value is damaged."""
        value, end = JsonValueEnd(), None
        while end is None and (text := (yield from self.text.take(_NEXT_CALL))):
            end = value.find(text)
            self.add_text(CallArguments(text[:end]))
        if end is not None:
            self.text.give_back(text[end:])

    def add_event(self, event: Event) -> None:
        super().add_event(event._replace(id=event.id or _make_id()) if isinstance(event, CallStart) else event)


def _make_id() -> str:
    return "".join(choice(_ID_CHARS) for _ in range(_ID_LENGTH))
