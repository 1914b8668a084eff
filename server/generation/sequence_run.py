"""Runs a request's sequences through the engine and the detokenizer."""

from collections.abc import AsyncGenerator
from contextlib import aclosing

from server.errors import EngineError, RequestError
from server.generation.generation import Generation, SequenceDelta
from server.generation.output_reader import OutputReader
from server.generation.recorder import SequenceRecorder
from server.operation.concurrently import take_turns
from server.operation.inference import Inference
from server.types import EngineOutput, FinishReason


async def run_sequences(
    inference: Inference, generation: Generation, engine_id: str
) -> AsyncGenerator[SequenceDelta, None]:
    """Yields the deltas of all choices as they arrive, until the engine or a stop string has ended each.

    Closing the generator aborts those that still run.

    Raises:
        EngineError: the engine died or failed one of the sequences.
        RequestError: the request is the cause of the failure.
    """
    indexes = {f"{engine_id}-{index}": index for index in range(generation.num_choices)}
    runs: dict[str, _SequenceRun] = {}
    """Of the sequences that have begun, and not ended."""
    reason: FinishReason = "abort"
    stream = inference.engine.generate(engine_id, generation.engine_prompts, generation.request.num_choices)
    try:
        async with aclosing(stream) as outputs:
            async for output in outputs:
                engine_name = output.request_id
                if engine_name not in runs:
                    runs[engine_name] = _SequenceRun(inference, generation, indexes[engine_name])
                delta = runs[engine_name].read(output)
                if delta.finish_reason is not None:
                    if output.finish_reason is None:
                        inference.engine.abort([engine_name])
                    runs.pop(engine_name).recorder.finish(delta.finish_reason)
                    del indexes[engine_name]
                yield delta
    except (EngineError, RequestError):
        reason = "error"
        raise
    finally:
        async for engine_name, index in take_turns(indexes.items()):
            run = runs.get(engine_name)
            recorder = _create_recorder(inference, generation, index) if run is None else run.recorder
            recorder.finish(reason)


class _SequenceRun:
    """One per choice."""

    def __init__(self, inference: Inference, generation: Generation, index: int) -> None:
        self._reader = OutputReader(inference.renderer, generation, index)
        self.recorder = _create_recorder(inference, generation, index)

    def read(self, output: EngineOutput) -> SequenceDelta:
        self.recorder.record(output)
        if output.finish_reason in ("error", "abort"):
            raise _failure(output)
        return self._reader.read(output)


def _create_recorder(inference: Inference, generation: Generation, index: int) -> SequenceRecorder:
    prompt_index = index // generation.request.num_choices
    return SequenceRecorder(
        inference.metrics.engine,
        context=generation.context,
        num_prompt_tokens=len(generation.prompts[prompt_index].token_ids),
        max_tokens=generation.params[prompt_index].max_tokens,
    )


def _failure(output: EngineOutput) -> EngineError | RequestError:
    if output.is_request_fault:
        return RequestError(f"The request cannot be completed: {output.error}.")
    return EngineError(output.error or "The engine aborted the request.")
