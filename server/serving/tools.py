"""Forced tool calls: the JSON schema that constrains the text, which `server.parsers.forced` reads.

The text of a named tool is its arguments; with `required` the text is an array of
`{"name": …, "parameters": …}`.
"""

from typing import Any

from server.errors import RequestError
from server.protocol.chat import ChatRequest
from server.protocol.tools import FunctionDefinition

_COMPACT = {"x-guidance": {"whitespace_pattern": " "}}
"""At most one blank in a row: small models otherwise fill their output with line breaks."""

_NO_PARAMETERS: dict[str, Any] = {"type": "object", "properties": {}, "additionalProperties": False}


def tool_schema(request: ChatRequest) -> dict[str, Any] | None:
    """The schema of the text; None unless `tool_choice` forces a call."""
    choice = request.tool_choice
    functions = [tool.function for tool in request.tools or ()]
    if choice in ("none", "auto", None):
        return None
    if choice == "required":
        return _array_schema(functions, is_single=request.parallel_tool_calls is False)
    named = next(function for function in functions if function.name == request.named_function)
    return _parameters(named) | _COMPACT


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
