"""A request in the engine's terms, and the output that the engine returns for it."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

from server.generation.chat_request import ChatRequest
from server.generation.completion_request import CompletionRequest
from server.generation.reasoning import PromptReasoning
from server.operation.request_context import RequestContext
from server.renderers.detokenizer import PromptTail
from server.renderers.prompts import RenderedPrompt
from server.renderers.stop_strings import StopString
from server.types import EnginePrompt, FinishReason, SamplingParams, TokenLogprob


class SequenceDelta(NamedTuple):
    """The output of one engine step for one sequence."""

    choice: int
    """Position among the request's choices."""
    text: str
    token_ids: list[int]
    logprobs: list[TokenLogprob] | None = None
    finish_reason: FinishReason | None = None
    stop_reason: int | str | None = None
    prompt_logprobs: list[TokenLogprob | None] | None = None
    num_cached_tokens: int = 0


@dataclass(frozen=True, kw_only=True)
class Generation:
    """One request for the engine: each prompt `num_choices` times, choices in the order of the prompts."""

    request: CompletionRequest | ChatRequest
    request_id: str
    """The id in the response. The engine gets unique ids, because clients may choose theirs."""
    prompts: Sequence[RenderedPrompt]
    params: Sequence[SamplingParams]
    """One per prompt."""
    reasoning: Sequence[PromptReasoning | None]
    """One per prompt; None if the model does not reason."""
    context: RequestContext

    @property
    def num_choices(self) -> int:
        """Number of choices of the whole request."""
        return len(self.prompts) * self.request.num_choices

    @cached_property
    def stop_strings(self) -> tuple[StopString, ...]:
        """Those of the request, for all of its choices."""
        return tuple(map(StopString, self.request.stop_strings))

    @property
    def num_prompt_tokens(self) -> int:
        """Number of tokens of all prompts."""
        return sum(len(prompt.token_ids) for prompt in self.prompts)

    def prompt_of(self, index: int) -> RenderedPrompt:
        """The prompt that a choice continues."""
        return self.prompts[index // self.request.num_choices]

    def reasoning_of(self, index: int) -> PromptReasoning | None:
        """The reasoning of a choice."""
        return self.reasoning[index // self.request.num_choices]

    @cached_property
    def prompt_tails(self) -> tuple[PromptTail, ...]:
        """The end of each prompt, for all of its choices."""
        return tuple(PromptTail(prompt.known_token_ids) for prompt in self.prompts)

    @property
    def engine_prompts(self) -> list[EnginePrompt]:
        """The prompts as the engine takes them."""
        return [
            EnginePrompt(prompt.token_ids, params, prompt.inputs)
            for prompt, params in zip(self.prompts, self.params, strict=True)
        ]
