"""Formats of DeepSeek V3, R1 and V3.1: calls between special tokens, the name apart from the arguments."""

from typing import ClassVar, Final

import regex

from server.parsers.base import CallFormat
from server.parsers.events import CallArguments, CallStart
from server.parsers.incoming_text import Waiting
from server.parsers.marked_calls import MarkedCalls

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
