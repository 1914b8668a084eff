"""Kimi K2's calls: `<|tool_call_begin|>functions.NAME:0<|tool_call_argument_begin|>JSON<|tool_call_end|>`."""

from collections.abc import Sequence
from typing import Final

import regex

from server.parsers.base import FunctionDefinition
from server.parsers.incoming_text import Found, Waiting
from server.parsers.text_parser import TextParser

_SECTION: Final = regex.compile(r"<\|tool_calls_section_begin\|>")
_CALL: Final = regex.compile(
    r"\s{0,64}<\|tool_call_begin\|>\s{0,64}(?P<id>(?:functions\.)?(?P<name>[^<>:]{1,256}):\d{1,9})\s{0,64}"
    r"<\|tool_call_argument_begin\|>"
)
_CALL_END: Final = regex.compile(r"<\|tool_call_end\|>|<\|tool_calls_section_end\|>")


class KimiK2Parser(TextParser):
    """Calls have ids of their own. They end the turn: text after the first one is dropped."""

    def __init__(self, functions: Sequence[FunctionDefinition]) -> None:
        super().__init__()

    def read(self) -> Waiting[None]:
        """Content, and the calls."""
        if section := (yield from self.text.find(_SECTION, self.add_content)):
            call = yield from self.text.expect(_CALL)
            if call is None:
                self.add_content(section[0])
                call = yield from self.text.find(_CALL, self.add_content)
            while call:
                yield from self._read_call(call)
                call = yield from self.text.find(_CALL, _drop)

    def _read_call(self, call: Found) -> Waiting[None]:
        self.start_call(call["name"], call["id"])
        is_empty = True

        def pass_on(text: str) -> None:
            nonlocal is_empty
            is_empty = False
            self.add_arguments(text)

        if (yield from self.text.find(_CALL_END, pass_on)) and is_empty:
            self.add_arguments("{}")


def _drop(text: str) -> None:
    pass
