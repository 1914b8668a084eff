"""`<tool_call>{"name": …, "arguments": …}</tool_call>`: Hermes, Qwen2.5, Qwen3, SmolLM and others."""

from server.parsers.base import CallFormat
from server.parsers.json_calls import CallStyle
from server.parsers.marked_calls import MarkedObjects


def _format(start: str, end: str) -> CallFormat:
    head = '{"name": "NAME", "arguments": '
    return CallFormat(start, ("\n" + head, head), ("}\n" + end, "}" + end))


class HermesParser(MarkedObjects):
    """The format of most models with ChatML templates."""

    markers = {"<tool_call>": "</tool_call>"}
    call_format = _format("<tool_call>", "</tool_call>")


class LongcatParser(MarkedObjects):
    """The same with longer markers."""

    markers = {"<longcat_tool_call>": "</longcat_tool_call>"}
    call_format = _format("<longcat_tool_call>", "</longcat_tool_call>")


class Granite4Parser(MarkedObjects):
    """The same, with arguments that may be a JSON text of JSON."""

    markers = HermesParser.markers
    call_format = HermesParser.call_format
    style = CallStyle(unwraps_text=True)
