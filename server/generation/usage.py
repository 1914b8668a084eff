"""Counts a request's tokens as they arrive."""

from collections.abc import Sequence

from server.generation.chat_request import ChatRequest
from server.generation.generation import Generation, SequenceDelta
from server.generation.reasoning import ReasoningCounter
from server.generation.request import StreamOptions
from server.http_body.response_parts import CompletionTokensDetails, PromptTokensDetails, Usage
from server.server_config import GenerationConfig


class UsageMeter:
    """One per request; `add` is called with every delta."""

    def __init__(self, generation: Generation, config: GenerationConfig, *, counts_output: bool = True) -> None:
        is_chat = isinstance(generation.request, ChatRequest)
        self._generation = generation
        self._has_prompt_details = config.enable_prompt_tokens_details
        self._counts_output = counts_output
        self._num_tokens = [0] * generation.num_choices
        self._num_cached_tokens = 0
        self._reasoning: list[ReasoningCounter | None] | None = None
        if is_chat and config.reasoning_parser is not None:
            found = [generation.reasoning_of(index) for index in range(generation.num_choices)]
            self._reasoning = [None if reasoning is None else reasoning.create_counter() for reasoning in found]

    def add(self, delta: SequenceDelta) -> None:
        """Counts new tokens; choices of the same prompt count its cached tokens once."""
        if self._counts_output:
            self._num_tokens[delta.choice] += len(delta.token_ids)
        if self._reasoning is not None and (counter := self._reasoning[delta.choice]) is not None:
            counter.add(delta.token_ids)
        if delta.num_cached_tokens and delta.choice % self._generation.request.num_choices == 0:
            self._num_cached_tokens += delta.num_cached_tokens

    def of_choice(self, index: int) -> Usage:
        """One choice's tokens so far, for `continuous_usage_stats`."""
        usage = Usage.of(len(self._generation.prompt_of(index).token_ids), self._num_tokens[index])
        if self._reasoning is not None:
            usage.completion_tokens_details = _details(self._reasoning[index : index + 1])
        return usage

    def total(self) -> Usage:
        """The whole request's tokens so far."""
        usage = Usage.of(self._generation.num_prompt_tokens, sum(self._num_tokens))
        if self._has_prompt_details:
            usage.prompt_tokens_details = PromptTokensDetails(self._num_cached_tokens)
        if self._reasoning is not None:
            usage.completion_tokens_details = _details(self._reasoning)
        return usage


class UsageReporting:
    """Whether a stream reports its usage at the end, and with every chunk."""

    def __init__(self, options: StreamOptions | None, config: GenerationConfig) -> None:
        is_forced = config.enable_force_include_usage
        self.at_end = is_forced or bool(options and options.include_usage)
        self.in_chunks = is_forced or bool(self.at_end and options and options.continuous_usage_stats)


def _details(counters: Sequence[ReasoningCounter | None]) -> CompletionTokensDetails:
    return CompletionTokensDetails(sum(counter.num_tokens for counter in counters if counter is not None))
