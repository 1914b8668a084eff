"""Formats of Granite before version 4."""

from server.parsers.json_calls import CallStyle
from server.parsers.marked_calls import MarkedArray, MarkedObjects


class GraniteParser(MarkedArray):
    """Granite 3.0 and 3.1: a marker and a list of calls."""

    markers = {"<|tool_call|>": "", "<tool_call>": ""}
    style = CallStyle(may_omit_arguments=True)


class Granite20bParser(MarkedObjects):
    """granite-20b-functioncalling: a marker before each call."""

    needs_special_tokens = False
    markers = {"<function_call>": ""}
