"""The interface of parsers of a model's output.

A parser reads the text of one choice while the model generates it. The parser holds back only text that may
be the beginning of a marker. The cost of a piece of text does not grow with the text before it. Text that is
no call, or a malformed call, becomes `Content`. No text is lost, and no text raises an error.
"""

from collections.abc import Mapping, Sequence
from enum import Enum
from typing import Any, ClassVar, NamedTuple, Protocol


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


class FunctionSignature(Protocol):
    """A function in the request's `tools`, such as `server.generation.request.FunctionDefinition`."""

    @property
    def name(self) -> str: ...

    @property
    def parameters(self) -> dict[str, Any] | None:
        """The JSON schema of the arguments."""


class OutputParser(Protocol):
    """Parses the text of one choice. Runs on the event loop."""

    def feed(self, text: str, token_ids: Sequence[int]) -> list[Event]:
        """Returns the events that the next piece of text completes. `token_ids` are the piece's tokens."""

    def finish(self) -> list[Event]:
        """Returns the events of the text that was held back. Called once, after the last piece."""


class CallFormat(NamedTuple):
    """The texts that a format writes around the JSON of a call's arguments. Grammars are built from them."""

    trigger: str
    """The text with which every call begins. Nothing else begins with this text."""
    begins: tuple[str, ...]
    """Texts that may follow the trigger. `NAME` stands for the function's name."""
    ends: tuple[str, ...]


class ToolParser(OutputParser, Protocol):
    """Finds the tool calls of one format. `server.text.parsers.tools` has one class for each format."""

    needs_special_tokens: ClassVar[bool]
    """Whether markers may be special tokens. If so, the detokenizer must not skip special tokens."""
    call_format: ClassVar[CallFormat | None]
    """The texts around arguments. None if no grammar can force a call's arguments to follow their schema."""

    def __init__(self, functions: Sequence[FunctionSignature]) -> None:
        """`functions` has all functions of the request's `tools`, and is not empty."""


class PromptEnd(Enum):
    """Where a prompt ends: within or after reasoning. The parser reads the output accordingly."""

    OPEN = "open"
    """The prompt ends within reasoning."""
    ENDED = "ended"
    """The prompt ends after reasoning, so the output is the answer."""
    SILENT = "silent"
    """The prompt has no marker of reasoning, so `is_open_at_start` decides how the output begins."""


class ReasoningFormat(Protocol):
    """The markers that some models write around their reasoning. There is one object per format."""

    @property
    def starts(self) -> tuple[str, ...]:
        """The texts that begin the reasoning, the usual one first."""

    @property
    def ends(self) -> tuple[str, ...]:
        """The texts that end the reasoning, the usual one first."""

    @property
    def pauses(self) -> tuple[str, ...]:
        """Texts that end a part of the reasoning, after which more reasoning may follow."""

    @property
    def forced_end(self) -> str | None:
        """The text that ends the reasoning when its token budget is used up. None if no budget can be set."""

    @property
    def parses_calls(self) -> bool:
        """Whether the parser of this format also finds tool calls, so that no tool parser is needed."""

    @property
    def answer_starts(self) -> tuple[str, ...]:
        """Texts that end the reasoning and belong to the answer, such as the tag of a tool call."""

    @property
    def is_open_at_start(self) -> bool:
        """Whether the output begins with reasoning if neither prompt nor output has a start marker."""

    def is_used(self, template_kwargs: Mapping[str, Any]) -> bool:
        """Whether the model reasons when its chat template is rendered with these variables."""

    def create_parser(self, prompt_end: PromptEnd, *, drops_answer_starts: bool = False) -> OutputParser:
        """Creates the parser of one choice.

        `drops_answer_starts` leaves the texts of `answer_starts` out of the answer. This is needed for forced
        calls, whose text has the server's own format.
        """
