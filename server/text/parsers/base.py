"""What goes into `OutputParser` and comes out of it."""

from enum import Enum
from typing import NamedTuple


class Reasoning(NamedTuple):
    """Text of the model's reasoning."""

    text: str


class Content(NamedTuple):
    """Text for the user."""

    text: str


class CallStart(NamedTuple):
    """A tool call begins."""

    name: str
    id: str | None = None
    """The call's id. None if the format has no ids. The server then creates an id."""


class CallArguments(NamedTuple):
    """JSON text that continues the arguments of the latest call."""

    text: str


Event = Reasoning | Content | CallStart | CallArguments


class PromptEnd(Enum):
    """Where a prompt ends: within or after reasoning. The parser reads the output accordingly."""

    OPEN = "open"
    """The prompt ends within reasoning."""
    ENDED = "ended"
    """The prompt ends after reasoning, so the output is the answer."""
    SILENT = "silent"
    """The prompt has no marker of reasoning, so `is_open_at_start` decides how the output begins."""
