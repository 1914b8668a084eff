"""The interface of parsers of a model's output.

A parser reads the text of one choice while the model generates it. It holds back only text that the next
piece may turn into a marker. Its cost per piece does not grow with the text. Text that is no call, malformed
calls included, becomes `Content`: nothing is lost and nothing raises.
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
    """Only if the format has ids; the server makes one for other calls."""


class CallArguments(NamedTuple):
    """Adds JSON text to the arguments of the latest call."""

    text: str


Event = Reasoning | Content | CallStart | CallArguments


class FunctionSignature(Protocol):
    """A function of the request's `tools`; `server.generation.request.FunctionDefinition` is one."""

    @property
    def name(self) -> str: ...

    @property
    def parameters(self) -> dict[str, Any] | None:
        """The JSON schema of the arguments."""


class OutputParser(Protocol):
    """Parses one choice; used on the event loop."""

    def feed(self, text: str, token_ids: Sequence[int]) -> list[Event]:
        """The events that the next piece of text completes; `token_ids` are the tokens that it came with."""

    def finish(self) -> list[Event]:
        """The events of the text that was held back; called once, after the last piece."""


class CallFormat(NamedTuple):
    """How a format writes a call around the JSON of its arguments, for grammars."""

    trigger: str
    """The text with which every call begins, and nothing else."""
    begins: tuple[str, ...]
    """Texts that may follow the trigger; `NAME` stands for the function's name."""
    ends: tuple[str, ...]


class ToolParser(OutputParser, Protocol):
    """Finds the tool calls of one format; one class per format in `server.text.parsers.tools`."""

    needs_special_tokens: ClassVar[bool]
    """Whether the format's markers may be special tokens, which the detokenizer then must not skip."""
    call_format: ClassVar[CallFormat | None]
    """None if no grammar can force the arguments of a call to follow their schema."""

    def __init__(self, functions: Sequence[FunctionSignature]) -> None:
        """`functions` are those of the request's `tools`, never empty."""


class PromptEnd(Enum):
    """What a prompt says about the reasoning of the output that follows it."""

    OPEN = "open"
    """The prompt ends within reasoning."""
    ENDED = "ended"
    """The prompt ends after reasoning: the output is the answer."""
    SILENT = "silent"
    """Neither: the output begins as the format's outputs do."""


class ReasoningFormat(Protocol):
    """How a kind of model marks its reasoning; one object per format."""

    @property
    def starts(self) -> tuple[str, ...]:
        """The texts that begin the reasoning, the usual one first."""

    @property
    def ends(self) -> tuple[str, ...]:
        """The texts that end it, the usual one first."""

    @property
    def pauses(self) -> tuple[str, ...]:
        """Texts that end one of several parts of the reasoning."""

    @property
    def forced_end(self) -> str | None:
        """The text that ends reasoning whose budget is used up; None if it cannot have one."""

    @property
    def parses_calls(self) -> bool:
        """Whether its parser also reads the tool calls of the model's format."""

    @property
    def answer_starts(self) -> tuple[str, ...]:
        """Texts that end the reasoning and belong to the answer, such as the tag of a tool call."""

    @property
    def is_open_at_start(self) -> bool:
        """Whether the output begins with reasoning where neither prompt nor output have a start."""

    def is_used(self, template_kwargs: Mapping[str, Any]) -> bool:
        """Whether the model reasons with these variables of its chat template."""

    def create_parser(self, prompt_end: PromptEnd, *, drops_answer_starts: bool = False) -> OutputParser:
        """The parser of one choice; `drops_answer_starts` if the answer is in the server's own format."""
