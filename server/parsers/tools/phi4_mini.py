"""`functools[…]`: Phi-4-mini."""

from server.parsers.json_calls import CallStyle
from server.parsers.marked_calls import MarkedArray


class Phi4MiniParser(MarkedArray):
    """A list of calls behind a word."""

    needs_special_tokens = False
    markers = {"functools": ""}
    style = CallStyle(("arguments", "parameters"))
