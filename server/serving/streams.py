"""Runs a request's sequences concurrently, on the event loop."""

import asyncio
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from uuid import uuid4

from server.serving.beam_search import BeamSearch
from server.serving.generation import Generation, SequenceDelta
from server.serving.inference import Inference
from server.serving.sequence_run import SequenceRun


async def generate(inference: Inference, generation: Generation) -> AsyncGenerator[SequenceDelta, None]:
    """Yields the deltas of all choices in the order in which they arrive; a beam search yields whole choices.

    Closing the generator aborts the sequences that still run in the engine.

    Raises:
        EngineError: the engine died or failed one of the sequences.
    """
    runs = _create_runs(inference, generation)
    engine_id = f"{generation.request_id}-{uuid4().hex[:8]}"
    streams = [run.run(f"{engine_id}-{index}") for index, run in enumerate(runs)]
    try:
        source = streams[0] if len(streams) == 1 else _merge(streams)
        interval = generation.request.stream_interval or 1
        if generation.request.stream and interval > 1:
            source = _batch(source, interval)
        async with aclosing(source) as deltas:
            async for delta in deltas:
                yield delta
    finally:
        size = len(runs) // len(generation.prompts)
        for start in range(0, len(runs), size):
            longest = max(run.num_tokens for run in runs[start : start + size])
            inference.metrics.engine.record_request(
                num_choices=generation.request.num_choices, max_generation_tokens=longest
            )


async def collect(inference: Inference, generation: Generation) -> list[SequenceDelta]:
    """Runs all sequences to their end and returns one delta per choice."""
    parts: list[list[SequenceDelta]] = [[] for _ in range(generation.num_choices)]
    async with aclosing(generate(inference, generation)) as deltas:
        async for delta in deltas:
            parts[delta.choice].append(delta)
    return [join_deltas(deltas_of_choice) for deltas_of_choice in parts]


def _create_runs(inference: Inference, generation: Generation) -> Sequence[SequenceRun | BeamSearch]:
    """One run per choice, or one search per prompt."""
    if generation.request.use_beam_search:
        return [BeamSearch(inference, generation, index) for index in range(len(generation.prompts))]
    return [SequenceRun(inference, generation, index) for index in range(generation.num_choices)]


async def _batch(source: AsyncGenerator[SequenceDelta, None], interval: int) -> AsyncGenerator[SequenceDelta, None]:
    """Joins deltas of a choice to `interval` tokens; the first and the last one are sent at once."""
    waiting: dict[int, list[SequenceDelta]] = {}
    async with aclosing(source) as deltas:
        async for delta in deltas:
            is_first = delta.choice not in waiting
            parts = waiting.setdefault(delta.choice, [])
            parts.append(delta)
            if is_first or delta.finish_reason is not None or sum(len(d.token_ids) for d in parts) >= interval:
                yield join_deltas(parts)
                parts.clear()


def join_deltas(deltas: list[SequenceDelta]) -> SequenceDelta:
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


async def _merge(streams: list[AsyncGenerator[SequenceDelta, None]]) -> AsyncGenerator[SequenceDelta, None]:
    """Runs the streams concurrently; the first failure ends all of them."""
    queue: asyncio.Queue[SequenceDelta | Exception | None] = asyncio.Queue()

    async def pump(stream: AsyncGenerator[SequenceDelta, None]) -> None:
        try:
            async with aclosing(stream):
                async for delta in stream:
                    queue.put_nowait(delta)
        except Exception as err:  # noqa: BLE001
            queue.put_nowait(err)
        else:
            queue.put_nowait(None)

    tasks = [asyncio.create_task(pump(stream)) for stream in streams]
    try:
        num_running = len(tasks)
        while num_running:
            item = await queue.get()
            if item is None:
                num_running -= 1
            elif isinstance(item, Exception):
                raise item
            else:
                yield item
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
