"""Formats of DeepSeek V3, R1 and V3.1: calls between special tokens, the name apart from the arguments."""

from server.parsers.base import CallFormat
from server.parsers.marked_calls import CallBody, MarkedCalls
from server.parsers.named_arguments import NamedArguments

_CALLS_BEGIN = "<｜tool▁calls▁begin｜>"
_CALLS_END = "<｜tool▁calls▁end｜>"
_CALL_BEGIN = "<｜tool▁call▁begin｜>"
_CALL_END = "<｜tool▁call▁end｜>"
_SEPARATOR = "<｜tool▁sep｜>"


class DeepseekV3Parser(MarkedCalls):
    """`function<｜tool▁sep｜>NAME`, then the arguments in a code block."""

    markers = {_CALLS_BEGIN + _CALL_BEGIN: _CALLS_END, _CALL_BEGIN: _CALLS_END}
    call_format = CallFormat(_CALL_BEGIN, (f"function{_SEPARATOR}NAME\n```json\n",), ("\n```" + _CALL_END,))

    def create_body(self) -> CallBody:
        return NamedArguments(
            before_name="function" + _SEPARATOR, before_arguments="\n```json\n", end="\n```" + _CALL_END
        )


class DeepseekV31Parser(MarkedCalls):
    """`NAME<｜tool▁sep｜>ARGUMENTS`."""

    markers = DeepseekV3Parser.markers
    call_format = CallFormat(_CALL_BEGIN, (f"NAME{_SEPARATOR}",), (_CALL_END,))

    def create_body(self) -> CallBody:
        return NamedArguments(before_arguments=_SEPARATOR, end=_CALL_END)
