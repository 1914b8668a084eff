"""`<|function_call|>{"name": …, "arguments": …}`: GigaChat 3."""

from server.parsers.marked_calls import MarkedObjects


class Gigachat3Parser(MarkedObjects):
    """A marker before each call; version 3.0 writes the role of a message instead."""

    markers = {"<|function_call|>": "", "function call<|role_sep|>\n": ""}
