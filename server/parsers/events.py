"""The parts that a parser finds in a model's output, in the order of the text."""

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
    """Only if the format has ids; the server makes one for other calls."""


class CallArguments(NamedTuple):
    """Adds JSON text to the arguments of the latest call."""

    text: str


Event = Reasoning | Content | CallStart | CallArguments
