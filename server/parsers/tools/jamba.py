"""`<tool_calls>[…]</tool_calls>`: Jamba."""

from server.parsers.marked_calls import MarkedArray


class JambaParser(MarkedArray):
    """A list of calls between markers."""

    markers = {"<tool_calls>": "</tool_calls>"}
