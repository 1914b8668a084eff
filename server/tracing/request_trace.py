"""What is noted about a request while it runs, for its spans; standard library only."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from time import perf_counter
from typing import Any, Final

from server.types import FinishReason, SamplingParams

CONTEXT_HEADERS: Final = ("traceparent", "tracestate")
"""W3C's names of the headers that say which trace a request belongs to."""


@dataclass(frozen=True, kw_only=True)
class SequenceTrace:
    """One sequence's way through the engine; times are those of `perf_counter`."""

    num_prompt_tokens: int
    num_cached_tokens: int
    num_tokens: int
    """Generated ones."""
    queue_s: float
    prefill_s: float
    first_s: float
    """When the first token came, 0 if none did."""
    last_s: float
    reason: FinishReason


@dataclass
class RequestTrace:
    """Filled in by the layers that a request goes through; lives on the event loop."""

    headers: Mapping[str, str]
    """The request's trace context."""
    begin_s: float = field(default_factory=perf_counter)
    request_id: str = ""
    num_choices: int = 1
    params: SamplingParams | None = None
    """Of the first sequence."""
    render_begin_s: float = 0.0
    render_s: float = 0.0
    sequences: list[SequenceTrace] = field(default_factory=list)

    def add_sequence(self, **fields: Any) -> None:
        """One sequence has ended; the fields are those of SequenceTrace."""
        self.sequences.append(SequenceTrace(**fields))

    @property
    def has_reached_engine(self) -> bool:
        """Whether there is anything to tell: vLLM, too, has no spans for requests that are refused."""
        return bool(self.sequences)
