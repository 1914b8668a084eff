"""Turns the engine's outputs of one choice into deltas with text."""

from server.generation.generation import Generation, SequenceDelta
from server.renderers.base import BaseRenderer
from server.types import EngineOutput, FinishReason


class OutputReader:
    """One per choice; `read` is called with every output, on the event loop."""

    def __init__(self, renderer: BaseRenderer, generation: Generation, index: int) -> None:
        request = generation.request
        self._index = index
        self._ignores_eos = request.ignore_eos
        self._keeps_stop_token = request.include_stop_str_in_output
        self._eos_token_id = renderer.eos_token_id
        self._detokenizer = renderer.create_detokenizer(
            skip_special_tokens=request.skip_special_tokens,
            spaces_between_special_tokens=request.spaces_between_special_tokens,
            stop=generation.stop_strings,
            include_stop_str_in_output=request.include_stop_str_in_output,
            min_tokens=request.min_tokens or 0,
            prompt=generation.prompt_tails[index // request.num_choices],
        )

    def read(self, output: EngineOutput) -> SequenceDelta:
        """The delta of the output; its finish reason is `stop` if a stop string was found."""
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
            choice=self._index,
            text=text,
            token_ids=token_ids,
            logprobs=output.logprobs,
            finish_reason=finish_reason,
            stop_reason=stop_reason,
            prompt_logprobs=output.prompt_logprobs,
            num_cached_tokens=output.num_cached_tokens,
        )

    def _stop_reason(self, stop_token_id: int | None) -> int | None:
        """The stop token; None for the model's main end-of-sequence token, as in vLLM."""
        return None if stop_token_id == self._eos_token_id and not self._ignores_eos else stop_token_id
