"""Tools in requests, tool calls in responses."""

from typing import Annotated, Any, Literal

import msgspec
from msgspec import UNSET, Meta, UnsetType


class FunctionDefinition(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """A function that the model may call."""

    name: Annotated[str, Meta(min_length=1, max_length=256)]
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None | UnsetType = UNSET
    defer_loading: bool | None | UnsetType = UNSET
    """For templates that show a tool only once it is referred to."""


class Tool(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """One member of `tools`."""

    type: Literal["function"] = "function"
    function: FunctionDefinition
    defer_loading: bool | None | UnsetType = UNSET

    def __post_init__(self) -> None:
        if self.function.defer_loading in (None, UNSET):
            self.function.defer_loading = self.defer_loading


class NamedFunction(msgspec.Struct, forbid_unknown_fields=True):
    """The name in a named tool choice."""

    name: str


class NamedToolChoice(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """A `tool_choice` that requires one function."""

    type: Literal["function"] = "function"
    function: NamedFunction


ToolChoice = Literal["none", "auto", "required"] | NamedToolChoice


class FunctionCall(msgspec.Struct):
    """The called function, with the arguments as JSON text."""

    name: str
    arguments: str


class ToolCall(msgspec.Struct, kw_only=True):
    """One member of `message.tool_calls`."""

    id: str
    type: Literal["function"] = "function"
    function: FunctionCall


class DeltaFunctionCall(msgspec.Struct, kw_only=True):
    """The part that a chunk adds to a call."""

    name: str | UnsetType = UNSET
    arguments: str | UnsetType = UNSET


class DeltaToolCall(msgspec.Struct, kw_only=True):
    """One member of `delta.tool_calls`; id, type and name are in the call's first chunk only."""

    index: int
    id: str | UnsetType = UNSET
    type: Literal["function"] | UnsetType = UNSET
    function: DeltaFunctionCall


def shown_tools(tools: list[Tool] | None) -> list[dict[str, Any]] | None:
    """The tools as a template gets them; None without any."""
    return [msgspec.to_builtins(tool) for tool in tools] if tools else None
