"""Runs one choice through the engine and the detokenizer."""

from collections.abc import AsyncGenerator
from contextlib import aclosing

from server.errors import EngineError, RequestError
from server.serving.generation import Generation, SequenceDelta
from server.serving.inference import Inference
from server.serving.recorder import SequenceRecorder
from server.types import EngineOutput, FinishReason


class SequenceRun:
    """One per choice; `run` is called once, on the event loop."""

    def __init__(self, inference: Inference, generation: Generation, index: int) -> None:
        request = generation.request
        self._engine = inference.engine
        self._index = index
        self._prompt = generation.prompt_of(index)
        self._params = generation.params_of(index)
        self._keeps_stop_token = request.include_stop_str_in_output
        self._eos_token_id = inference.renderer.eos_token_id
        self._detokenizer = inference.renderer.create_detokenizer(
            skip_special_tokens=request.skip_special_tokens,
            spaces_between_special_tokens=request.spaces_between_special_tokens,
            stop=request.stop_strings,
            include_stop_str_in_output=request.include_stop_str_in_output,
            min_tokens=self._params.min_tokens,
            prompt_token_ids=self._prompt.known_token_ids,
        )
        self.recorder = SequenceRecorder(
            inference.metrics.engine,
            context=generation.context,
            num_prompt_tokens=len(self._prompt.token_ids),
            max_tokens=self._params.max_tokens,
        )

    async def run(self, engine_id: str) -> AsyncGenerator[SequenceDelta, None]:
        """Yields deltas until the engine ends the sequence or a stop string is found."""
        reason: FinishReason = "abort"
        prompt = self._prompt
        stream = self._engine.generate(engine_id, prompt.token_ids, self._params, prompt.inputs)
        try:
            async with aclosing(stream) as outputs:
                async for output in outputs:
                    self.recorder.record(output)
                    if output.finish_reason in ("error", "abort"):
                        raise _failure(output)
                    delta = self._read(output)
                    reason = delta.finish_reason or "abort"
                    if delta.finish_reason is not None and output.finish_reason is None:
                        await outputs.aclose()
                    yield delta
        except (EngineError, RequestError):
            reason = "error"
            raise
        finally:
            self.recorder.finish(reason)

    def _read(self, output: EngineOutput) -> SequenceDelta:
        token_ids = output.token_ids
        is_ended_by_token = output.stop_token_id is not None
        text, stop = self._detokenizer.append(
            token_ids[:-1] if is_ended_by_token and not self._keeps_stop_token else token_ids
        )
        finish_reason: FinishReason | None = output.finish_reason
        stop_reason: int | str | None = stop
        if stop is not None:
            finish_reason = "stop"
        elif finish_reason is not None:
            text += self._detokenizer.finish()
            stop_reason = self._stop_reason(output.stop_token_id)
        return SequenceDelta(
            self._index,
            text,
            token_ids,
            output.logprobs,
            finish_reason,
            stop_reason,
            output.prompt_logprobs,
            output.num_cached_tokens,
        )

    def _stop_reason(self, stop_token_id: int | None) -> int | None:
        """The stop token; None for the model's main end-of-sequence token, as in vLLM."""
        return None if stop_token_id == self._eos_token_id and not self._params.ignore_eos else stop_token_id


def _failure(output: EngineOutput) -> EngineError | RequestError:
    if output.is_request_fault:
        return RequestError(f"The request cannot be completed: {output.error}.")
    return EngineError(output.error or "The engine aborted the request.")
