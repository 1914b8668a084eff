"""Converts the tools of /v1/responses into functions for the model, and reads the input of custom tools."""

import json
import re
from typing import Annotated, Any, Final, Literal, NamedTuple, TypeVar

import msgspec
from msgspec import Meta

from base.errors import RequestError
from base.json_depth import read_json
from server.apis.responses.request import ResponsesRequest
from server.generation.request import FunctionDefinition, NamedFunction, NamedToolChoice, Tool, ToolChoice

T = TypeVar("T")

_SEPARATOR: Final = "__"
"""The text between namespace and name in the name that the model sees."""

CUSTOM_INPUT: Final = "input"
"""The only parameter of the function that replaces a custom tool."""

_CUSTOM_PARAMETERS: Final[dict[str, Any]] = {
    "type": "object",
    "properties": {CUSTOM_INPUT: {"type": "string", "description": "The text for this tool."}},
    "required": [CUSTOM_INPUT],
    "additionalProperties": False,
}

_HEAD: Final = re.compile(r'\s*\{\s*"' + CUSTOM_INPUT + r'"\s*:\s*"')
_HEX: Final = "[0-9a-fA-F]"
_COMPLETE: Final = re.compile(
    rf'[^"\\]*(?:(?:\\[^u]|\\u(?![dD][89abAB]){_HEX}{{4}}|\\u[dD][89abAB]{_HEX}{{2}}\\u{_HEX}{{4}})[^"\\]*)*'
)
"""Matches all characters and complete escapes of a JSON text. Half of a surrogate pair is not complete.

The match always succeeds, so the pattern never backtracks. Possessive groups would also prevent backtracking,
but Python's `re` before 3.11.5 matches them wrongly.
"""
_MOST_HEAD: Final = 256
"""The most characters before the text. Arguments with more blanks there are read when they are complete."""
_MOST_ESCAPE: Final = len(r"\ud83d\ude42")


class CalledTool(NamedTuple):
    """A tool that the model has called, as the response names it."""

    name: str
    namespace: str | None = None
    is_custom: bool = False


class _Typed(msgspec.Struct, kw_only=True):
    """The type of a tool or of a tool choice."""

    type: str


class _Function(msgspec.Struct, kw_only=True):
    name: Annotated[str, Meta(min_length=1, max_length=256)]
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class _Custom(msgspec.Struct, kw_only=True):
    name: Annotated[str, Meta(min_length=1, max_length=256)]
    description: str | None = None
    format: _Typed | None = None


class _Namespace(msgspec.Struct, kw_only=True):
    name: Annotated[str, Meta(min_length=1, max_length=128)]
    tools: list[dict[str, Any]]


class _Choice(msgspec.Struct, kw_only=True):
    type: str
    name: str | None = None
    mode: Literal["auto", "required"] = "auto"
    tools: list[dict[str, Any]] = []


msgspec.json.Decoder(tuple[_Typed, _Function, _Custom, _Namespace, _Choice])
"""Prepares the classes, because msgspec crashes if two threads of the pool meet one at its first use."""


class ResponseTools:
    """The tools of one request.

    The model sees a function in a namespace as `NAMESPACE__NAME`, and a custom tool as a function with one
    text parameter. As in vLLM without a tool server, the model does not see tools that the server would have
    to run, such as web search, code interpreter or MCP.
    """

    def __init__(self, request: ResponsesRequest) -> None:
        """Raises RequestError for a malformed tool, or for a choice of a tool that is not given."""
        self._called: dict[str, CalledTool] = {}
        functions: list[FunctionDefinition] = []
        for position, tool in enumerate(request.tools or ()):
            functions += self._convert(tool, f"tools[{position}]")
        self.choice, allowed = self._choose(request)
        self.functions = [
            Tool(function=function) for function in functions if allowed is None or function.name in allowed
        ]
        if self.choice not in (None, "none") and not self.functions:
            raise RequestError(
                "`tool_choice` requires a call, but `tools` has no function that the model can call.",
                param="tool_choice",
            )

    def called(self, name: str) -> CalledTool:
        """Returns the tool for the function that the model calls by this name."""
        return self._called.get(name) or CalledTool(name)

    def _convert(self, tool: dict[str, Any], path: str) -> list[FunctionDefinition]:
        kind = _read(tool, _Typed, path).type
        if kind == "function":
            return [self._add(_read(tool, _Function, path))]
        if kind == "custom":
            custom = _read(tool, _Custom, path)
            if custom.format is not None and custom.format.type == "grammar":
                raise RequestError(
                    "Custom tools with a grammar format are not supported; "
                    "only free-form text custom tools are accepted.",
                    param="tools",
                )
            shown = _Function(name=custom.name, description=custom.description, parameters=_CUSTOM_PARAMETERS)
            return [self._add(shown, CalledTool(custom.name, is_custom=True))]
        if kind == "namespace":
            namespace = _read(tool, _Namespace, path)
            return self._convert_members(namespace, f"{path}.tools")
        return []

    def _convert_members(self, namespace: _Namespace, path: str) -> list[FunctionDefinition]:
        functions = []
        for position, member in enumerate(namespace.tools):
            if _read(member, _Typed, f"{path}[{position}]").type == "function":
                function = _read(member, _Function, f"{path}[{position}]")
                called = CalledTool(function.name, namespace.name)
                function.name = flat_name(namespace.name, function.name)
                functions.append(self._add(function, called))
        return functions

    def _add(self, function: _Function, called: CalledTool | None = None) -> FunctionDefinition:
        self._called[function.name] = called or CalledTool(function.name)
        return FunctionDefinition(
            name=function.name,
            description=function.description,
            parameters=function.parameters,
            strict=function.strict,
        )

    def _choose(self, request: ResponsesRequest) -> tuple[ToolChoice | None, set[str] | None]:
        """Returns the chat request's tool choice, and the names of the functions that the model may call.

        If the choice is None, the model chooses. If the names are None, all functions are allowed. As in
        vLLM, the server does not check whether a parser can read the model's calls.
        """
        given = request.tool_choice
        if not request.tools:
            if given == "required":
                raise RequestError(
                    "Tool choice 'required' must be specified with 'tools' parameter.", param="tool_choice"
                )
            return ("none" if isinstance(given, str) else self._named(given)), None
        if given == "auto":
            return None, None
        if isinstance(given, str):
            return given, None
        choice = _read(given, _Choice, "tool_choice", param="tool_choice")
        if choice.type == "allowed_tools":
            allowed = {self._find(str(member.get("name"))) for member in choice.tools}
            return (None if choice.mode == "auto" else choice.mode), allowed
        return self._named(given), None

    def _named(self, given: dict[str, Any]) -> ToolChoice | None:
        choice = _read(given, _Choice, "tool_choice", param="tool_choice")
        if choice.type not in ("function", "custom"):
            return None if self._called else "none"
        return NamedToolChoice(function=NamedFunction(self._find(choice.name or "")))

    def _find(self, name: str) -> str:
        """Returns the name under which the model sees a tool. `name` needs no namespace if it is unique."""
        if name in self._called:
            return name
        candidates = [flat for flat, tool in self._called.items() if tool.namespace and tool.name == name]
        if len(candidates) > 1:
            raise RequestError(
                f"Tool choice '{name}' is ambiguous: it is in several namespaces ({', '.join(candidates)}). "
                "Choose it by its full '<namespace>__<name>' name.",
                param="tool_choice",
            )
        if not candidates:
            raise RequestError("Tool choice 'function' not found in 'tools' parameter.", param="tool_choice")
        return candidates[0]


def flat_name(namespace: str | None, name: str) -> str:
    """Returns the name under which the model sees a function."""
    return name if namespace is None else f"{namespace}{_SEPARATOR}{name}"


def _read(value: dict[str, Any], kind: type[T], path: str, *, param: str = "tools") -> T:
    try:
        return msgspec.convert(value, kind)
    except msgspec.ValidationError as err:
        raise RequestError(f"Invalid value for `{path}`: {str(err).replace('`$', f'`{path}')}.", param=param) from err


class CustomInputReader:
    """Decodes the text in `{"input": "…"}` while it arrives.

    Arguments of another form are passed to the tool unchanged.
    """

    def __init__(self) -> None:
        self._arguments: list[str] = []
        self._rest = ""
        self._is_inside = False
        self._is_ended = False
        self._shown: list[str] = []

    def read(self, text: str) -> str:
        """Reads the next piece of the arguments. Returns the part of the tool's text that is now complete."""
        self._arguments.append(text)
        if self._is_ended:
            return ""
        self._rest += text
        if not self._is_inside:
            head = _HEAD.match(self._rest)
            if head is None:
                self._is_ended = len(self._rest) > _MOST_HEAD
                return ""
            self._is_inside, self._rest = True, self._rest[head.end() :]
        found = _COMPLETE.match(self._rest)
        assert found is not None
        self._rest = self._rest[found.end() :]
        self._is_ended = self._rest.startswith('"') or len(self._rest) >= _MOST_ESCAPE
        return self._show(found[0])

    def finish(self) -> tuple[str, str]:
        """Returns the last part of the text, and the whole text.

        Malformed arguments may give a text that does not continue the earlier parts. The last part is then
        the whole text.
        """
        whole, shown = _decode("".join(self._arguments)), "".join(self._shown)
        return (whole[len(shown) :] if whole.startswith(shown) else whole), whole

    def _show(self, escaped: str) -> str:
        try:
            text = _without_surrogates(json.loads(f'"{escaped}"', strict=False))
        except ValueError:  # JSON has no such escape
            return ""
        self._shown.append(text)
        return text


def _decode(arguments: str) -> str:
    try:
        value = read_json(arguments)
    except ValueError:
        return arguments
    text = value.get(CUSTOM_INPUT) if isinstance(value, dict) else None
    return _without_surrogates(text) if isinstance(text, str) else arguments


def _without_surrogates(text: str) -> str:
    """Replaces single surrogates by U+FFFD. JSON can escape them, but UTF-8 cannot encode them."""
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
