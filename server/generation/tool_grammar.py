"""What constrains the text of tool calls: a JSON schema of forced calls, a grammar of chosen ones.

The text of a named tool is its arguments; with `required` the text is an array of
`{"name": …, "parameters": …}`. `server.parsers.forced` reads both.
"""

import json
from collections.abc import Sequence
from typing import Any

from server.engine.sampling.json_schema import SCHEMA_OPTIONS, prepare_schema
from server.errors import RequestError
from server.generation.chat_request import ChatRequest
from server.generation.tools import FunctionDefinition
from server.parsers.base import CallFormat

_COMPACT = {"x-guidance": SCHEMA_OPTIONS | {"whitespace_pattern": " "}}
"""At most one blank in a row: small models otherwise fill their output with line breaks."""

_ANY_OBJECT: dict[str, Any] = {"type": "object"}
_NO_PARAMETERS: dict[str, Any] = {"type": "object", "properties": {}, "additionalProperties": False}


def forced_schema(request: ChatRequest) -> dict[str, Any]:
    """The schema of the text of a request that forces a call."""
    functions = [tool.function for tool in request.tools or ()]
    if request.tool_choice == "required":
        return _array_schema(functions, is_single=request.parallel_tool_calls is False)
    named = next(function for function in functions if function.name == request.named_function)
    return _parameters(named) | _COMPACT


def strict_grammar(functions: Sequence[FunctionDefinition], call_format: CallFormat, trigger_id: int | None) -> str:
    """The Lark grammar of a text in which calls name a known function, and strict ones follow its schema.

    A call begins with the format's trigger, which is the special token `trigger_id`, or else ordinary text.
    """
    trigger = json.dumps(call_format.trigger)
    rules = [
        "%llguidance {}",
        "start: call* TEXT",
        "TEXT: /(.|\\n)*/",
        f"head[lazy]: TEXT {trigger}" if trigger_id is None else f"head: TEXT <[{trigger_id}]>",
        f"call: head ({' | '.join(f'call_{index}' for index in range(len(functions)))})",
    ]
    for index, function in enumerate(functions):
        begin, end = (
            " | ".join(json.dumps(_with_name(text, function.name)) for text in texts)
            for texts in (call_format.begins, call_format.ends)
        )
        schema = _parameters(function) if function.strict is True else _ANY_OBJECT
        rules.append(f"call_{index}: ({begin}) %json {prepare_schema(json.dumps(schema | _COMPACT))} ({end})")
    return "\n".join(rules)


def _with_name(text: str, name: str) -> str:
    """The text with the name in it, as JSON if it is between quotes."""
    quoted = '"NAME"'
    return text.replace(quoted, json.dumps(name)) if quoted in text else text.replace("NAME", name)


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
