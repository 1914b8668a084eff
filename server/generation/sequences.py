"""Runs a request's sequences in the engine. Times, detokenizes, joins and counts their outputs."""

from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from time import perf_counter
from uuid import uuid4

import msgspec

from base.errors import EngineError, RequestError
from server.generation.generation import Generation, SequenceDelta
from server.generation.generation_request import ChatRequest
from server.generation.reasoning import ReasoningCounter
from server.operation.admission import RequestContext
from server.operation.metrics.server_metrics import EngineMetrics
from server.operation.models import Inference
from server.terms.concurrency import take_turns
from server.terms.server_config import GenerationConfig
from server.terms.types import EngineOutput, FinishReason

_MANY_ENTRIES = 4096
"""How many tokens and candidates of a response can be encoded in about a millisecond."""


async def generate(inference: Inference, generation: Generation) -> AsyncGenerator[SequenceDelta, None]:
    """Yields the deltas of all choices as they arrive. The engine or a stop string ends each choice.

    Close the generator to abort the sequences that still run in the engine.

    Raises:
        EngineError: the engine died, or could not finish one of the sequences.
        RequestError: the request caused the failure.
    """
    engine_id = f"{generation.request_id}-{uuid4().hex[:8]}"
    indexes = {f"{engine_id}-{index}": index for index in range(generation.num_choices)}
    running: dict[str, _Sequence] = {}
    """Id in the engine -> sequence, for sequences that have begun and not ended."""
    num_tokens = [0] * generation.num_choices
    reason: FinishReason = "abort"
    stream = inference.engine.generate(engine_id, generation.engine_prompts, generation.request.num_choices)
    try:
        async with aclosing(stream) as outputs:
            async for output in outputs:
                engine_name = output.request_id
                if engine_name not in running:
                    running[engine_name] = _Sequence(inference, generation, indexes[engine_name])
                delta = running[engine_name].read(output)
                if delta.finish_reason is not None:
                    if output.finish_reason is None:
                        inference.engine.abort([engine_name])
                    running.pop(engine_name).recorder.finish(delta.finish_reason)
                    del indexes[engine_name]
                num_tokens[delta.choice] += len(delta.token_ids)
                yield delta
    except (EngineError, RequestError):
        reason = "error"
        raise
    finally:
        size = generation.request.num_choices
        async for start in take_turns(range(0, len(num_tokens), size)):
            inference.metrics.engine.record_request(
                num_choices=size, max_generation_tokens=max(num_tokens[start : start + size])
            )
        async for engine_name, index in take_turns(indexes.items()):
            begun = running.get(engine_name)
            recorder = _create_recorder(inference, generation, index) if begun is None else begun.recorder
            recorder.finish(reason)


async def collect(inference: Inference, generation: Generation) -> list[SequenceDelta]:
    """Runs all sequences to their end, and returns one delta per choice."""
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


def _join(deltas: list[SequenceDelta]) -> SequenceDelta:
    """Joins the deltas of a choice into one delta with all tokens and texts."""
    first, last = deltas[0], deltas[-1]
    has_logprobs = any(delta.logprobs is not None for delta in deltas)
    return last._replace(
        text="".join(delta.text for delta in deltas),
        token_ids=[token_id for delta in deltas for token_id in delta.token_ids],
        logprobs=[entry for delta in deltas for entry in delta.logprobs or ()] if has_logprobs else None,
        prompt_logprobs=first.prompt_logprobs,
        num_cached_tokens=first.num_cached_tokens,
    )


class _Sequence:
    """A choice whose outputs have begun. `read` is called with every output, on the event loop."""

    def __init__(self, inference: Inference, generation: Generation, index: int) -> None:
        request = generation.request
        self.recorder = _create_recorder(inference, generation, index)
        self._index = index
        self._constraint_param = generation.constraint_param
        self._ignores_eos = request.ignore_eos
        self._keeps_stop_token = request.include_stop_str_in_output
        self._eos_token_id = inference.renderer.tokenizer.eos_token_id
        self._detokenizer = inference.renderer.create_detokenizer(
            skip_special_tokens=request.skip_special_tokens,
            stop=request.stop_strings,
            include_stop_str_in_output=request.include_stop_str_in_output,
            min_tokens=request.min_tokens or 0,
            prompt=generation.prompt_tails[index // request.num_choices],
        )

    def read(self, output: EngineOutput) -> SequenceDelta:
        """Returns the delta for the output. The finish reason is `stop` if a stop string was found.

        Raises:
            EngineError: the engine could not finish the sequence.
            RequestError: the request caused the failure.
        """
        self.recorder.record(output)
        if output.finish_reason in ("error", "abort"):
            raise _failure(output, self._constraint_param)
        token_ids = output.token_ids
        is_stop_hidden = output.stop_token_id is not None and not self._keeps_stop_token
        text, stop = self._detokenizer.append(token_ids[:-1] if is_stop_hidden else token_ids)
        finish_reason: FinishReason | None = output.finish_reason
        stop_reason: int | str | None = stop
        if stop is not None:
            finish_reason = "stop"
        elif finish_reason is not None:
            text += self._detokenizer.finish()
            is_plain_end = output.stop_token_id == self._eos_token_id and not self._ignores_eos
            stop_reason = None if is_plain_end else output.stop_token_id  # as in vLLM
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


def _create_recorder(inference: Inference, generation: Generation, index: int) -> "SequenceRecorder":
    prompt_index = index // generation.request.num_choices
    return SequenceRecorder(
        inference.metrics.engine,
        generation.context,
        len(generation.prompts[prompt_index].token_ids),
        max_tokens=generation.params[prompt_index].max_tokens,
    )


def _failure(output: EngineOutput, constraint_param: str | None) -> EngineError | RequestError:
    if output.fault == "constraint":
        message = f"The constraint in `{constraint_param}` cannot be used: {output.error}"
        return RequestError(message, param=constraint_param)
    if output.fault == "request":
        return RequestError(f"The request cannot be completed: {output.error}.")
    return EngineError(output.error or "The engine aborted the request.")


class SequenceRecorder:
    """Times one sequence for the metrics. `finish` is called exactly once.

    As in vLLM, the result of a pooled prompt is timed as its first and last token, but is not counted as a
    generated token.
    """

    def __init__(
        self, metrics: EngineMetrics, context: RequestContext, num_prompt_tokens: int, *, max_tokens: int | None
    ) -> None:
        """`max_tokens` is None for a pooled prompt."""
        self._metrics = metrics
        self._context = context
        self._num_prompt_tokens = num_prompt_tokens
        self._max_tokens = max_tokens
        self._first_s = self._last_s = 0.0
        self._first: EngineOutput | None = None
        self._num_preemptions = 0
        self._num_tokens = 0

    def record(self, output: EngineOutput) -> None:
        num_tokens = len(output.token_ids)
        if not num_tokens and self._max_tokens is not None:
            return
        now = perf_counter()
        if self._first is None:
            self._record_first(output, now)
        else:
            self._metrics.inter_token_latency.observe(now - self._last_s)
        self._last_s = now
        self._num_tokens += num_tokens
        self._metrics.count_generated(num_tokens)
        self._num_preemptions = output.num_preemptions

    def _record_first(self, output: EngineOutput, now: float) -> None:
        self._first, self._first_s = output, now
        self._context.times.record_prefill(queue_s=output.queue_s, prefill_s=output.prefill_s)
        self._context.lease.finish_prefill(self._num_prompt_tokens)
        self._metrics.time_to_first_token.observe(now - self._context.arrival_s)
        self._metrics.count_prompt(self._num_prompt_tokens, num_cached=output.num_cached_tokens)

    def finish(self, reason: FinishReason) -> None:
        metrics = self._metrics
        metrics.finished[reason].inc()
        metrics.e2e_latency.observe(perf_counter() - self._context.arrival_s)
        metrics.request_prompt_tokens.observe(self._num_prompt_tokens)
        metrics.request_generation_tokens.observe(self._num_tokens)
        decode_s = self._last_s - self._first_s
        if self._first is not None:
            metrics.request_prefill_tokens.observe(self._num_prompt_tokens - self._first.num_cached_tokens)
            metrics.queue_time.observe(self._first.queue_s)
            metrics.prefill_time.observe(self._first.prefill_s)
            metrics.decode_time.observe(decode_s)
            metrics.inference_time.observe(self._first.prefill_s + decode_s)
        if self._max_tokens is not None:
            metrics.params_max_tokens.observe(self._max_tokens)
            metrics.num_preemptions.observe(self._num_preemptions)
        if self._num_tokens:
            self._context.times.record_decode(decode_s)
            metrics.time_per_output_token.observe(decode_s / (self._num_tokens - 1) if self._num_tokens > 1 else 0.0)


class Usage(msgspec.Struct, kw_only=True):
    """`usage` of completions and chat completions."""

    prompt_tokens: int
    total_tokens: int
    completion_tokens: int
    prompt_tokens_details: dict[str, int] | None = None
    """The number of the prompt's tokens that came from the prefix cache (`cached_tokens`)."""
    completion_tokens_details: dict[str, int] | None = None
    """The number of generated tokens that are reasoning (`reasoning_tokens`)."""

    @classmethod
    def of(cls, num_prompt_tokens: int, num_tokens: int = 0) -> "Usage":
        """Returns the usage for these numbers of prompt tokens and generated tokens."""
        total = num_prompt_tokens + num_tokens
        return cls(prompt_tokens=num_prompt_tokens, total_tokens=total, completion_tokens=num_tokens)


class UsageMeter:
    """Counts the tokens of one request. `add` is called with every delta."""

    def __init__(self, generation: Generation, config: GenerationConfig, *, counts_output: bool = True) -> None:
        is_chat = isinstance(generation.request, ChatRequest)
        options = generation.request.stream_options
        self.is_sent_at_end = config.enable_force_include_usage or bool(options and options.include_usage)
        """Whether the stream ends with the usage."""
        is_continuous = config.enable_force_include_usage or bool(options and options.continuous_usage_stats)
        self._is_in_chunks = self.is_sent_at_end and is_continuous
        self._generation = generation
        self._has_prompt_details = config.enable_prompt_tokens_details
        self._counts_output = counts_output
        self._num_tokens = [0] * generation.num_choices
        self._num_cached_tokens = 0
        self._reasoning: list[ReasoningCounter | None] | None = None
        if is_chat and config.reasoning_parser is not None:
            found = map(generation.reasoning_of, range(generation.num_choices))
            self._reasoning = [None if each is None else ReasoningCounter(each) for each in found]

    def add(self, delta: SequenceDelta) -> None:
        """Counts new tokens. Cached tokens of a prompt count once for all of its choices."""
        if self._counts_output:
            self._num_tokens[delta.choice] += len(delta.token_ids)
        if self._reasoning is not None and (counter := self._reasoning[delta.choice]) is not None:
            counter.add(delta.token_ids)
        if delta.num_cached_tokens and delta.choice % self._generation.request.num_choices == 0:
            self._num_cached_tokens += delta.num_cached_tokens

    def of_chunk(self, index: int) -> Usage | None:
        """Returns the usage of one choice so far. None if the chunks of this stream have no usage."""
        if not self._is_in_chunks:
            return None
        usage = Usage.of(len(self._generation.prompt_of(index).token_ids), self._num_tokens[index])
        if self._reasoning is not None:
            usage.completion_tokens_details = _details(self._reasoning[index : index + 1])
        return usage

    def total(self) -> Usage:
        """Returns the usage of the whole request so far."""
        usage = Usage.of(self._generation.num_prompt_tokens, sum(self._num_tokens))
        if self._has_prompt_details:
            usage.prompt_tokens_details = {"cached_tokens": self._num_cached_tokens}
        if self._reasoning is not None:
            usage.completion_tokens_details = _details(self._reasoning)
        return usage


def _details(counters: Sequence[ReasoningCounter | None]) -> dict[str, int]:
    return {"reasoning_tokens": sum(counter.num_tokens for counter in counters if counter is not None)}
