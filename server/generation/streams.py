"""Runs a request's sequences concurrently, on the event loop."""

from collections.abc import AsyncGenerator
from contextlib import aclosing
from uuid import uuid4

from server.generation.beam_search import run_searches
from server.generation.generation import Generation, SequenceDelta
from server.generation.sequence_run import run_sequences
from server.operation.concurrently import take_turns
from server.operation.inference import Inference

_MANY_ENTRIES = 4096
"""Tokens and candidates in a response; encoding this many takes about a millisecond."""


async def generate(inference: Inference, generation: Generation) -> AsyncGenerator[SequenceDelta, None]:
    """Yields the deltas of all choices in the order in which they arrive; a beam search yields whole choices.

    Closing the generator aborts the sequences that still run in the engine.

    Raises:
        EngineError: the engine died or failed one of the sequences.
        RequestError: the request is the cause of the failure.
    """
    engine_id = f"{generation.request_id}-{uuid4().hex[:8]}"
    num_tokens = [0] * generation.num_choices
    try:
        run = run_searches if generation.request.use_beam_search else run_sequences
        source = run(inference, generation, engine_id)
        interval = generation.request.stream_interval or 1
        if generation.request.stream and interval > 1:
            source = _batch(source, interval)
        async with aclosing(source) as deltas:
            async for delta in deltas:
                num_tokens[delta.choice] += len(delta.token_ids)
                yield delta
    finally:
        size = generation.request.num_choices
        for start in range(0, len(num_tokens), size):
            inference.metrics.engine.record_request(
                num_choices=size, max_generation_tokens=max(num_tokens[start : start + size])
            )


async def collect(inference: Inference, generation: Generation) -> list[SequenceDelta]:
    """Runs all sequences to their end and returns one delta per choice."""
    parts: list[list[SequenceDelta]] = [[] for _ in range(generation.num_choices)]
    async with aclosing(generate(inference, generation)) as deltas:
        async for delta in deltas:
            parts[delta.choice].append(delta)
    joined = [_join(deltas_of_choice) async for deltas_of_choice in take_turns(parts)]
    num_entries = sum(len(d.token_ids) + len(d.prompt_logprobs or ()) for d in joined)
    params = generation.params[0]
    if num_entries * (1 + max(params.logprobs or 0, params.prompt_logprobs or 0)) > _MANY_ENTRIES:
        generation.context.is_small = False
    return joined


async def _batch(source: AsyncGenerator[SequenceDelta, None], interval: int) -> AsyncGenerator[SequenceDelta, None]:
    """Joins deltas of a choice to `interval` tokens; the first and the last one are sent at once."""
    waiting: dict[int, list[SequenceDelta]] = {}
    async with aclosing(source) as deltas:
        async for delta in deltas:
            is_first = delta.choice not in waiting
            parts = waiting.setdefault(delta.choice, [])
            parts.append(delta)
            if is_first or delta.finish_reason is not None or sum(len(d.token_ids) for d in parts) >= interval:
                yield _join(parts)
                parts.clear()


def _join(deltas: list[SequenceDelta]) -> SequenceDelta:
    """One delta with the tokens and texts of several ones of a choice."""
    first, last = deltas[0], deltas[-1]
    has_logprobs = any(delta.logprobs is not None for delta in deltas)
    return last._replace(
        text="".join(delta.text for delta in deltas),
        token_ids=[token_id for delta in deltas for token_id in delta.token_ids],
        logprobs=[entry for delta in deltas for entry in delta.logprobs or ()] if has_logprobs else None,
        prompt_logprobs=first.prompt_logprobs,
        num_cached_tokens=first.num_cached_tokens,
    )
