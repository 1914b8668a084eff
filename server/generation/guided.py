"""Finds the constraint that a request sets for its output (guided decoding). The engine compiles it."""

import json
from collections.abc import Sequence
from typing import Any, NamedTuple

from base.errors import RequestError
from base.json_depth import read_json
from server.engine.sampling.json_schema import SCHEMA_OPTIONS, prepare_schema
from server.generation.generation_request import ChatRequest, CompletionRequest, FunctionDefinition, StructuredOutputs
from server.terms.types import GuidedDecoding
from server.text.parsers.formats import CallFormat
from server.text.parsers.json_text import is_nested_deeper

_MAX_SCHEMA_NESTING = 64
"""vLLM's limit of levels in a schema. The time to compile a schema grows steeply with its levels."""

_ANY_OBJECT: dict[str, Any] = {"type": "object"}
_NO_PARAMETERS: dict[str, Any] = {"type": "object", "properties": {}, "additionalProperties": False}
_COMPACT = {"x-guidance": SCHEMA_OPTIONS | {"whitespace_pattern": " "}}
"""Allows only single blanks in JSON. Otherwise, small models fill their output with line breaks."""


class Constraint(NamedTuple):
    """A constraint of guided decoding, and the field of the request that sets it."""

    param: str
    guided: GuidedDecoding


def find_constraint(request: CompletionRequest | ChatRequest) -> Constraint | None:
    """Returns the constraint of a request that `is_guided`. The engine compiles it.

    A forced call takes precedence over `response_format`. The result is None if the fields require nothing,
    for example a `response_format` of type `text`.

    Raises:
        RequestError: there is more than one constraint, or the constraint is malformed.
    """
    found = [
        *_from_response_format(request),
        *_from_structured_outputs(request.structured_outputs or StructuredOutputs()),
    ]
    if len(found) > 1:
        raise RequestError(
            "You can only use one kind of constraint: one of `response_format` and `structured_outputs`, "
            f"got {len(found)}.",
            param="structured_outputs",
        )
    constraint = found[0] if found else None
    if not isinstance(request, ChatRequest) or not request.forces_call:
        return constraint
    if constraint is not None and constraint.param == "structured_outputs" and request.named_function is not None:
        raise RequestError(
            "You can only either use constraints for structured outputs or tools, not both.", param="tool_choice"
        )
    return Constraint("tools", _json_schema(_forced_schema(request), "tools"))


def find_strict_constraint(
    request: ChatRequest, call_format: CallFormat, *, trigger_id: int | None
) -> Constraint | None:
    """Returns the constraint for calls that the model chooses to make. None if no tool is strict."""
    functions = [tool.function for tool in request.tools or ()]
    strict = [function for function in functions if function.strict is True]
    if not strict:
        return None
    for function in strict:
        _json_schema(function.parameters or {}, "tools")
    return Constraint("tools", GuidedDecoding("grammar", _strict_grammar(functions, call_format, trigger_id)))


def _from_response_format(request: CompletionRequest | ChatRequest) -> list[Constraint]:
    wanted = request.response_format
    if wanted is None or wanted.type == "text":
        return []
    if wanted.type == "json_object":
        return [Constraint("response_format", GuidedDecoding("json_object"))]
    assert wanted.json_schema is not None
    return [Constraint("response_format", _json_schema(wanted.json_schema.schema, "response_format"))]


def _from_structured_outputs(wanted: StructuredOutputs) -> list[Constraint]:
    if wanted.json_object is False:
        raise RequestError(
            "`structured_outputs.json_object` must be true if it is set. Leave it out instead.",
            param="structured_outputs",
        )
    found = []
    if wanted.json is not None:
        found.append(_json_schema(wanted.json, "json"))
    if wanted.regex is not None:
        found.append(GuidedDecoding("regex", wanted.regex))
    if wanted.choice is not None:
        if not wanted.choice or not all(wanted.choice):
            raise RequestError("`choice` must hold at least one text, and no empty one.", param="choice")
        found.append(GuidedDecoding("choice", json.dumps(wanted.choice)))
    if wanted.grammar is not None:
        found.append(GuidedDecoding("grammar", wanted.grammar))
    if wanted.json_object:
        found.append(GuidedDecoding("json_object"))
    return [Constraint("structured_outputs", guided) for guided in found]


def _json_schema(schema: str | dict[str, Any] | None, param: str) -> GuidedDecoding:
    if isinstance(schema, str):
        try:
            schema = read_json(schema)
        except ValueError as err:
            raise RequestError(f"The JSON schema in `{param}` is not valid JSON: {err}", param=param) from err
    if not isinstance(schema, dict):
        raise RequestError(f"The JSON schema in `{param}` must be an object.", param=param)
    if is_nested_deeper(schema, _MAX_SCHEMA_NESTING):
        raise RequestError(
            f"The JSON schema in `{param}` is nested too deeply: at most {_MAX_SCHEMA_NESTING} levels.", param=param
        )
    return GuidedDecoding("json_schema", json.dumps(schema))


def _forced_schema(request: ChatRequest) -> dict[str, Any]:
    """Returns the schema of the text of forced calls. `server.text.parsers.formats.FORCED` is its format.

    For a named tool, the text is the tool's arguments. With `required`, the text is an array of objects with
    `name` and `parameters`.
    """
    functions = [tool.function for tool in request.tools or ()]
    if request.tool_choice == "required":
        return _array_schema(functions, is_single=request.parallel_tool_calls is False)
    named = next(function for function in functions if function.name == request.named_function)
    return _parameters(named) | _COMPACT


def _strict_grammar(functions: Sequence[FunctionDefinition], call_format: CallFormat, trigger_id: int | None) -> str:
    """Returns the Lark grammar of a text in which calls name known functions.

    The arguments of a strict function follow its schema. A call begins with the format's trigger. The trigger
    is the special token `trigger_id`, or ordinary text if `trigger_id` is None.
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
    """Replaces `NAME` in the text by the function's name. Between quotes, the name is written as JSON."""
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
    """Returns the schema of one call. Moves its parameters' `$defs` to the root, where references point."""
    parameters = _parameters(function)
    own = parameters.pop("$defs", {})
    if not isinstance(own, dict):
        raise RequestError(f"The $defs of tool '{function.name}' must be an object.", param="tools")
    for name, definition in own.items():
        if definitions.setdefault(name, definition) != definition:
            raise RequestError(f"Tool definition '{name}' has multiple schemas, which is not supported.", param="tools")
    return {
        "type": "object",
        "properties": {"name": {"type": "string", "enum": [function.name]}, "parameters": parameters},
        "required": ["name", "parameters"],
        "additionalProperties": False,
    }


def _parameters(function: FunctionDefinition) -> dict[str, Any]:
    """Returns the schema of the arguments. It must be an object, whose end the parser can find."""
    parameters = {"type": "object"} | (function.parameters or _NO_PARAMETERS)
    if parameters["type"] != "object":
        raise RequestError(f"The parameters of tool '{function.name}' must be of type 'object'.", param="tools")
    return parameters
