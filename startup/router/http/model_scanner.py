"""What finds the members `model` and `stream` of a request's body while it arrives.

A scanner keeps nothing but the values that it has found. Its cost is linear in the body, and a turn of the
event loop is short if it gets slices of at most `SLICE_BYTES`.
"""

from abc import ABC, abstractmethod
from typing import Final

SLICE_BYTES: Final = 4 << 10
"""A slice of the costliest text takes one or two milliseconds."""
LONGEST_NAME: Final = 4096
"""Bytes of a model's name that are kept; a longer name is the name of no model."""


class ModelScanner(ABC):
    """Reads one body."""

    def __init__(self) -> None:
        self.model: str | None = None
        """The requested model: the last value within what was read, as in vLLM."""
        self.is_other_type = False
        """Whether `model` has a value that is not a text."""
        self.is_stream = False
        self.is_complete = False
        """Whether nothing that follows can change the result: all was read, or the body is invalid."""
        self.is_invalid = False
        """Whether the body is no JSON object, or no form."""

    @abstractmethod
    def feed(self, data: bytes) -> None:
        """Reads the next part of the body."""

    def set_model(self, model: str | None, *, is_other_type: bool = False) -> None:
        self.model, self.is_other_type = model, is_other_type
