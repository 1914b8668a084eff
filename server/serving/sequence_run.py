"""Runs one choice through the engine and the detokenizer."""

from collections.abc import AsyncGenerator
from contextlib import aclosing

from server.errors import EngineError, RequestError
from server.serving.generation import Generation, SequenceDelta
from server.serving.inference import Inference
from server.serving.output_reader import OutputReader
from server.serving.recorder import SequenceRecorder
from server.types import EngineOutput, FinishReason


class SequenceRun:
    """One per choice; `run` is called once, on the event loop."""

    def __init__(self, inference: Inference, generation: Generation, index: int) -> None:
        self._engine = inference.engine
        self._prompt = generation.prompt_of(index)
        self._params = generation.params_of(index)
        self._reader = OutputReader(inference.renderer, generation, index)
        self._recorder = SequenceRecorder(
            inference.metrics.engine,
            context=generation.context,
            num_prompt_tokens=len(self._prompt.token_ids),
            max_tokens=self._params.max_tokens,
        )

    @property
    def num_tokens(self) -> int:
        """Tokens generated so far."""
        return self._recorder.num_tokens

    async def run(self, engine_id: str) -> AsyncGenerator[SequenceDelta, None]:
        """Yields deltas until the engine ends the sequence or a stop string is found."""
        reason: FinishReason = "abort"
        prompt = self._prompt
        stream = self._engine.generate(engine_id, prompt.token_ids, self._params, prompt.inputs)
        try:
            async with aclosing(stream) as outputs:
                async for output in outputs:
                    self._recorder.record(output)
                    if output.finish_reason in ("error", "abort"):
                        raise _failure(output)
                    delta = self._reader.read(output)
                    reason = delta.finish_reason or "abort"
                    if delta.finish_reason is not None and output.finish_reason is None:
                        await outputs.aclose()
                    yield delta
        except (EngineError, RequestError):
            reason = "error"
            raise
        finally:
            self._recorder.finish(reason)


def _failure(output: EngineOutput) -> EngineError | RequestError:
    if output.is_request_fault:
        return RequestError(f"The request cannot be completed: {output.error}.")
    return EngineError(output.error or "The engine aborted the request.")
