"""The record of a running request, from which its spans are made; standard library only."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from time import perf_counter
from typing import Any, Final

from server.types import FinishReason, SamplingParams

CONTEXT_HEADERS: Final = ("traceparent", "tracestate")
"""W3C's headers with the trace that a request belongs to."""


@dataclass(frozen=True, kw_only=True)
class SequenceTrace:
    """The times of one sequence in the engine, by `perf_counter`."""

    num_prompt_tokens: int
    num_cached_tokens: int
    num_tokens: int
    """Number of generated tokens."""
    queue_s: float
    prefill_s: float
    first_s: float
    """When the first token arrived; 0 without one."""
    last_s: float
    reason: FinishReason


@dataclass
class RequestTrace:
    """Filled in by each layer that handles the request; used on the event loop only."""

    headers: Mapping[str, str]
    """The request's trace context."""
    begin_s: float = field(default_factory=perf_counter)
    request_id: str = ""
    num_choices: int = 1
    params: SamplingParams | None = None
    """The parameters of the first sequence."""
    render_begin_s: float = 0.0
    render_s: float = 0.0
    sequences: list[SequenceTrace] = field(default_factory=list)

    def add_sequence(self, **fields: Any) -> None:
        """Adds an ended sequence; the fields are those of SequenceTrace."""
        self.sequences.append(SequenceTrace(**fields))

    @property
    def has_reached_engine(self) -> bool:
        """Whether the request has spans: as in vLLM, rejected requests have none."""
        return bool(self.sequences)
