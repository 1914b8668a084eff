"""A list of calls, bare or in one of several wrappings: xLAM."""

from server.parsers.json_calls import CallStyle
from server.parsers.marked_calls import MarkedArray


class XlamParser(MarkedArray):
    """Every list of calls counts, wherever it is in the text."""

    needs_special_tokens = False
    markers = {"```json": "```", "```": "```", "[TOOL_CALLS]": "", "<tool_call>": "</tool_call>"}
    bare_starts = "["
    style = CallStyle(unwraps_text=True)
