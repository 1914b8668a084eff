"""Forced tool calls: the JSON schema that constrains the text, and the calls that are read from the text.

The text of a named tool is its arguments; with `required` the text is an array of
`{"name": …, "parameters": …}`. The schema fixes the order of keys, so calls can be read from incomplete text.
"""

import json
import re
from typing import Any
from uuid import uuid4

from server.errors import RequestError
from server.protocol.chat import ChatRequest
from server.protocol.tools import DeltaFunctionCall, DeltaToolCall, FunctionCall, FunctionDefinition, ToolCall

_COMPACT = {"x-guidance": {"whitespace_pattern": " "}}
"""At most one blank in a row: small models otherwise fill their output with line breaks."""

_NO_PARAMETERS: dict[str, Any] = {"type": "object", "properties": {}, "additionalProperties": False}

_CALL_HEAD = re.compile(r'[\s\[,]*\{\s*"name"\s*:\s*("(?:[^"\\]|\\.)*")\s*,\s*"parameters"\s*:\s*')


def tool_schema(request: ChatRequest) -> dict[str, Any] | None:
    """The schema of the text; None if the text is unconstrained.

    Raises:
        RequestError: `tool_choice` is `auto`, which needs a parser for the model's own format.
    """
    choice = request.tool_choice or ("auto" if request.tools else "none")
    functions = [tool.function for tool in request.tools or ()]
    if choice == "none":
        return None
    if choice == "auto":
        raise RequestError(
            '"auto" tool choice requires --enable-auto-tool-choice and --tool-call-parser to be set',
            param="tool_choice",
        )
    if choice == "required":
        return _array_schema(functions, is_single=request.parallel_tool_calls is False)
    named = next(function for function in functions if function.name == request.named_function)
    return _parameters(named) | _COMPACT


def create_tool_reader(request: ChatRequest) -> "NamedCallReader | RequiredCallsReader | None":
    """The reader of one choice's text; None if the text is content."""
    if request.named_function is not None:
        return NamedCallReader(request.named_function)
    return RequiredCallsReader() if request.tool_choice == "required" else None


class NamedCallReader:
    """The whole text is the arguments of one call."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._is_open = False

    def read(self, text: str) -> list[DeltaToolCall]:
        """The part of the call that the new text adds."""
        if not text:
            return []
        if self._is_open:
            return [_arguments(0, text)]
        self._is_open = True
        return [_opening(0, self._name, text)]


class RequiredCallsReader:
    """The text is an array of calls."""

    def __init__(self) -> None:
        self._num_calls = 0
        self._head = ""
        self._value: _ValueEnd | None = None

    def read(self, text: str) -> list[DeltaToolCall]:
        """The parts of calls that the new text adds."""
        deltas: list[DeltaToolCall] = []
        while text:
            text = self._read_head(text, deltas) if self._value is None else self._read_arguments(text, deltas)
        return deltas

    def _read_head(self, text: str, deltas: list[DeltaToolCall]) -> str:
        self._head += text
        head = _CALL_HEAD.search(self._head)
        if head is None or head.end() == len(self._head):
            return ""
        deltas.append(_opening(self._num_calls, json.loads(head[1]), ""))
        rest = self._head[head.end() :]
        self._num_calls += 1
        self._head, self._value = "", _ValueEnd()
        return rest

    def _read_arguments(self, text: str, deltas: list[DeltaToolCall]) -> str:
        assert self._value is not None
        end = self._value.find(text)
        deltas.append(_arguments(self._num_calls - 1, text[:end]))
        if end is None:
            return ""
        self._value = None
        return text[end:]


class _ValueEnd:
    """Finds the end of a JSON object that arrives in pieces."""

    def __init__(self) -> None:
        self._depth = 0
        self._is_string = False
        self._is_escape = False

    def find(self, text: str) -> int | None:
        """The index after the closing brace; None if it has not arrived yet."""
        for index, char in enumerate(text):
            if self._is_escape:
                self._is_escape = False
            elif self._is_string:
                self._is_escape = char == "\\"
                self._is_string = char != '"'
            elif char == '"':
                self._is_string = True
            else:
                self._depth += (char in "{[") - (char in "}]")
                if not self._depth:
                    return index + 1
        return None


def collect_tool_calls(deltas: list[DeltaToolCall]) -> list[ToolCall]:
    """Joins the parts that the reader found in the whole text."""
    calls: list[ToolCall] = []
    for delta in deltas:
        arguments = str(delta.function.arguments)
        if delta.index == len(calls):
            calls.append(ToolCall(id=str(delta.id), function=FunctionCall(str(delta.function.name), arguments)))
        else:
            calls[delta.index].function.arguments += arguments
    return calls


def _opening(index: int, name: str, arguments: str) -> DeltaToolCall:
    return DeltaToolCall(
        index=index,
        id=f"chatcmpl-tool-{uuid4().hex}",
        type="function",
        function=DeltaFunctionCall(name=name, arguments=arguments),
    )


def _arguments(index: int, arguments: str) -> DeltaToolCall:
    return DeltaToolCall(index=index, function=DeltaFunctionCall(arguments=arguments))


def _array_schema(functions: list[FunctionDefinition], *, is_single: bool) -> dict[str, Any]:
    definitions: dict[str, Any] = {}
    schema: dict[str, Any] = {
        "type": "array",
        "minItems": 1,
        "items": {"anyOf": [_call_schema(function, definitions) for function in functions]},
    }
    if is_single:
        schema["maxItems"] = 1
    if definitions:
        schema["$defs"] = definitions
    return schema | _COMPACT


def _call_schema(function: FunctionDefinition, definitions: dict[str, Any]) -> dict[str, Any]:
    """The schema of one call; its parameters' definitions move to the root, where their references point."""
    parameters = _parameters(function)
    for name, definition in parameters.pop("$defs", {}).items():
        if definitions.setdefault(name, definition) != definition:
            raise RequestError(f"Tool definition '{name}' has multiple schemas, which is not supported.", param="tools")
    return {
        "type": "object",
        "properties": {"name": {"type": "string", "enum": [function.name]}, "parameters": parameters},
        "required": ["name", "parameters"],
        "additionalProperties": False,
    }


def _parameters(function: FunctionDefinition) -> dict[str, Any]:
    """The schema of the arguments; always an object, whose end can be found in the text."""
    parameters = {"type": "object"} | (function.parameters or _NO_PARAMETERS)
    if parameters["type"] != "object":
        raise RequestError(f"The parameters of tool '{function.name}' must be of type 'object'.", param="tools")
    return parameters
