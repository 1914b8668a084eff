"""Converts the tools of /v1/responses into functions for the model."""

from typing import Annotated, Any, Final, Literal, NamedTuple, TypeVar

import msgspec
from msgspec import UNSET, Meta

from base.errors import RequestError
from server.apis.responses.responses_request import ResponsesRequest
from server.generation.generation_request import FunctionDefinition, NamedFunction, NamedToolChoice, Tool, ToolChoice

T = TypeVar("T")

_SEPARATOR: Final = "__"
"""The text between namespace and name in the name that the model sees."""


class CalledTool(NamedTuple):
    """A tool that the model has called, as the response names it."""

    name: str
    namespace: str | None = None


class _Typed(msgspec.Struct, kw_only=True):
    """The type of a tool or of a tool choice."""

    type: str


class _Namespace(msgspec.Struct, kw_only=True):
    name: Annotated[str, Meta(min_length=1, max_length=128)]
    tools: list[dict[str, Any]]


class _Choice(msgspec.Struct, kw_only=True):
    type: str
    name: str | None = None
    mode: Literal["auto", "required"] = "auto"
    tools: list[dict[str, Any]] = []


msgspec.json.Decoder(tuple[_Typed, FunctionDefinition, _Namespace, _Choice])
"""Prepares the classes, because msgspec crashes if two threads of the pool meet one at its first use."""


class ResponseTools:
    """The tools of one request.

    The model sees a function in a namespace as `NAMESPACE__NAME`. As in vLLM without a tool server, the model
    does not see tools that the server would have to run, such as web search, code interpreter or MCP.
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
            return [self._add(_read(tool, FunctionDefinition, path))]
        if kind == "custom":
            raise _custom_tool("tools")
        if kind == "namespace":
            namespace = _read(tool, _Namespace, path)
            return self._convert_members(namespace, f"{path}.tools")
        return []

    def _convert_members(self, namespace: _Namespace, path: str) -> list[FunctionDefinition]:
        functions = []
        for position, member in enumerate(namespace.tools):
            if _read(member, _Typed, f"{path}[{position}]").type == "function":
                function = _read(member, FunctionDefinition, f"{path}[{position}]")
                called = CalledTool(function.name, namespace.name)
                function.name = flat_name(namespace.name, function.name)
                functions.append(self._add(function, called))
        return functions

    def _add(self, function: FunctionDefinition, called: CalledTool | None = None) -> FunctionDefinition:
        self._called[function.name] = called or CalledTool(function.name)
        function.strict = None if function.strict is UNSET else function.strict
        function.defer_loading = UNSET
        return function

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
        if choice.type == "custom":
            raise _custom_tool("tool_choice")
        if choice.type != "function":
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


def _custom_tool(param: str) -> RequestError:
    return RequestError("Custom tools need `--engine vllm`. Use functions for the embedded engine.", param=param)
