"""Traces of requests and starts as plain values, with vLLM's names and attributes; standard library only.

A running request fills in a `RequestTrace`; its spans are made when it has ended.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from time import perf_counter
from typing import Any, Final

from server.types import FinishReason, SamplingParams

_NS: Final = 1_000_000_000

Attribute = str | int | float | Sequence[str]

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


@dataclass(frozen=True, kw_only=True)
class Span:
    """Times are nanoseconds since the epoch."""

    name: str
    begin_ns: int
    end_ns: int
    attributes: Mapping[str, Attribute] = field(default_factory=dict)
    error: str | None = None
    events: Mapping[str, int] = field(default_factory=dict)
    """Named moments, in nanoseconds since the epoch."""
    children: Sequence["Span"] = ()
    is_server: bool = False
    """Whether the span is the server's side of a remote call."""


def describe_request(trace: RequestTrace, *, model_name: str, end_s: float, offset_ns: int) -> Span:
    """The request's span, `llm_request`, with a child for each stage.

    Args:
        end_s: when the last byte of the response was sent, by `perf_counter`.
        offset_ns: nanoseconds since the epoch at which `perf_counter` was 0.
    """

    def at(time_s: float) -> int:
        return offset_ns + int(time_s * _NS)

    return Span(
        name="llm_request",
        begin_ns=at(trace.begin_s),
        end_ns=at(end_s),
        attributes=_request_attributes(trace, model_name, end_s),
        error="the engine failed" if any(s.reason == "error" for s in trace.sequences) else None,
        children=tuple(_stages(trace, at)),
        is_server=True,
    )


def describe_start(report: Mapping[str, Any], *, ready_ns: int) -> Span:
    """The start as a trace: a root span with the spans of all processes as children.

    Args:
        report: the body of /startupz.
        ready_ns: when the start ended.
    """
    begin_ns = ready_ns - int(report["total_s"] * _NS)

    def at(seconds: float) -> int:
        return begin_ns + int(seconds * _NS)

    spans = [
        Span(
            name=span["name"],
            begin_ns=at(span["begin_s"]),
            end_ns=at(span["end_s"]),
            attributes={"vllm_cli.process": span["process"]}
            | ({"vllm_cli.waits_for": span["waits_for"]} if span["waits_for"] else {}),
        )
        for span in report["spans"]
    ]
    return Span(
        name="startup",
        begin_ns=begin_ns,
        end_ns=ready_ns,
        attributes={
            "gen_ai.response.model": report["model"],
            "vllm_cli.start_method": report["start_method"],
            "vllm_cli.outcome": report["outcome"],
        },
        events={name: at(seconds) for name, seconds in report["marks"].items()},
        children=spans,
    )


def _request_attributes(trace: RequestTrace, model_name: str, end_s: float) -> dict[str, Attribute]:
    """The longest times and the sum of tokens of all sequences; a prompt with several choices counts once."""
    sequences = trace.sequences
    prompts = sequences[:: trace.num_choices]
    queue_s = max(s.queue_s for s in sequences)
    prefill_s = max(s.prefill_s for s in sequences)
    decode_s = max(s.last_s - s.first_s for s in sequences)
    attributes: dict[str, Attribute] = {
        "gen_ai.request.id": trace.request_id,
        "gen_ai.response.model": model_name,
        "gen_ai.response.finish_reasons": [s.reason for s in sequences],
        "gen_ai.request.n": trace.num_choices,
        "gen_ai.usage.num_sequences": len(sequences),
        "gen_ai.usage.prompt_tokens": sum(s.num_prompt_tokens for s in prompts),
        "gen_ai.usage.completion_tokens": sum(s.num_tokens for s in sequences),
        "gen_ai.latency.e2e": end_s - trace.begin_s,
        "gen_ai.latency.time_in_queue": queue_s,
        "gen_ai.latency.time_in_model_prefill": prefill_s,
        "gen_ai.latency.time_in_model_decode": decode_s,
        "gen_ai.latency.time_in_model_inference": prefill_s + decode_s,
    }
    if first_s := min((s.first_s for s in sequences if s.first_s), default=0.0):
        attributes["gen_ai.latency.time_to_first_token"] = first_s - trace.begin_s
    if trace.params is not None:
        attributes |= {
            "gen_ai.request.max_tokens": trace.params.max_tokens,
            "gen_ai.request.temperature": trace.params.temperature,
            "gen_ai.request.top_p": trace.params.top_p,
        }
    return attributes


def _stages(trace: RequestTrace, at: Callable[[float], int]) -> Iterator[Span]:
    if trace.render_begin_s:
        end_s = trace.render_begin_s + trace.render_s
        yield Span(name="render", begin_ns=at(trace.render_begin_s), end_ns=at(end_s))
    for index, sequence in enumerate(trace.sequences):
        if sequence.first_s:
            yield from _sequence_stages(sequence, index, at)


def _sequence_stages(sequence: SequenceTrace, index: int, at: Callable[[float], int]) -> Iterator[Span]:
    """Derives begin times from the durations that the engine reports, which end with the first token."""
    prefill_s = sequence.first_s - sequence.prefill_s
    of_prefill = {
        "gen_ai.usage.prompt_tokens": sequence.num_prompt_tokens,
        "vllm_cli.cached_tokens": sequence.num_cached_tokens,
    }
    for name, begin_s, end_s, attributes in (
        ("queue", prefill_s - sequence.queue_s, prefill_s, {}),
        ("prefill", prefill_s, sequence.first_s, of_prefill),
        ("decode", sequence.first_s, sequence.last_s, {"gen_ai.usage.completion_tokens": sequence.num_tokens}),
    ):
        yield Span(
            name=name,
            begin_ns=at(begin_s),
            end_ns=at(end_s),
            attributes={"vllm_cli.sequence": index, **attributes},
        )
