"""Formats whose calls are JSON behind a marker."""

from server.parsers.base import CallFormat
from server.parsers.json_calls import CallStyle
from server.parsers.marked_calls import MarkedArray, MarkedCalls


def _format(start: str, end: str) -> CallFormat:
    head = '{"name": "NAME", "arguments": '
    return CallFormat(start, ("\n" + head, head), ("}\n" + end, "}" + end))


class HermesParser(MarkedCalls):
    """`<tool_call>{"name": …, "arguments": …}</tool_call>`: Hermes, Qwen2.5, Qwen3, SmolLM and others."""

    markers = {"<tool_call>": "</tool_call>"}
    call_format = _format("<tool_call>", "</tool_call>")


class Granite4Parser(MarkedCalls):
    """The same, with arguments that may be a JSON text of JSON."""

    markers = HermesParser.markers
    call_format = HermesParser.call_format
    style = CallStyle(unwraps_text=True)


class Gigachat3Parser(MarkedCalls):
    """`<|function_call|>{"name": …, "arguments": …}`; version 3.0 writes the role of a message instead."""

    markers = {"<|function_call|>": "", "function call<|role_sep|>\n": ""}


class GraniteParser(MarkedArray):
    """Granite 3.0 and 3.1: a marker and a list of calls."""

    markers = {"<|tool_call|>": "", "<tool_call>": ""}
    style = CallStyle(may_omit_arguments=True)


class Granite20bParser(MarkedCalls):
    """granite-20b-functioncalling: a marker before each call."""

    needs_special_tokens = False
    markers = {"<function_call>": ""}


class InternlmParser(MarkedCalls):
    """`<|action_start|><|plugin|>{"name": …, "parameters": …}<|action_end|>`."""

    markers = {"<|action_start|><|plugin|>": "<|action_end|>"}
    style = CallStyle(("parameters", "arguments"), may_omit_arguments=True)


class JambaParser(MarkedArray):
    """`<tool_calls>[…]</tool_calls>`."""

    markers = {"<tool_calls>": "</tool_calls>"}


class LlamaJsonParser(MarkedCalls):
    """`{"name": …, "parameters": …}; …`: Llama 3 and 4 with JSON, with or without `<|python_tag|>`.

    Every JSON object with a name and parameters is a call, wherever it is in the text.
    """

    needs_special_tokens = False
    markers = {"<|python_tag|>": ""}
    bare_starts = "{"
    separators = ";"
    style = CallStyle(("arguments", "parameters"))


class Phi4MiniParser(MarkedArray):
    """`functools[…]`."""

    needs_special_tokens = False
    markers = {"functools": ""}
    style = CallStyle(("arguments", "parameters"))


class XlamParser(MarkedArray):
    """A list of calls, bare or in one of several wrappings, wherever it is in the text."""

    needs_special_tokens = False
    markers = {"```json": "```", "```": "```", "[TOOL_CALLS]": "", "<tool_call>": "</tool_call>"}
    bare_starts = "["
    style = CallStyle(unwraps_text=True)
