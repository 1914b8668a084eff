"""A rendered request in the engine's terms: constraints, sampling parameters, admission."""

import logging
import reprlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple
from uuid import uuid4

import msgspec

from base.request_ids import set_request_id
from envs.redaction import MASK
from server.generation.chat_request import ChatRequest
from server.generation.completion_request import CompletionRequest
from server.generation.guided import Constraint, find_constraint
from server.generation.reasoning import ModelReasoning, PromptReasoning
from server.generation.sampling import SamplingBuilder, SamplingDefaults
from server.operation.inference import Inference
from server.operation.request_context import RequestContext
from server.renderers.detokenizer import PromptTail
from server.renderers.prompts import RenderedPrompt
from server.types import EnginePrompt, FinishReason, SamplingParams, TokenLogprob

logger = logging.getLogger(__name__)


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
    constraint_param: str | None
    """The request's field with the constraint of guided decoding."""
    context: RequestContext

    @property
    def num_choices(self) -> int:
        """Number of choices of the whole request."""
        return len(self.prompts) * self.request.num_choices

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


class GenerationBuilder:
    """One per server; shared by chat and completions."""

    def __init__(self, inference: Inference, reasoning: ModelReasoning) -> None:
        self._config = inference.config
        self._renderer = inference.renderer
        self._engine = inference.engine
        self._reasoning = reasoning
        self._models = inference.models
        self._defaults = SamplingDefaults.from_config(inference.config.generation, inference.renderer.files)

    def build(
        self,
        request: CompletionRequest | ChatRequest,
        prompts: Sequence[RenderedPrompt],
        context: RequestContext,
        *,
        id_prefix: str,
        strict_tools: Constraint | None = None,
    ) -> Generation:
        """The generation of a request; blocks, so it runs in the renderer pool.

        `id_prefix` names the API in the response's id. `strict_tools` applies unless the request has a
        constraint of its own.

        Raises:
            RequestError: the request does not fit the model.
        """
        constraint = find_constraint(request) or strict_tools
        reasoning = [
            self._reasoning.of_prompt(request, prompt, has_grammar=constraint is not None) for prompt in prompts
        ]
        sampling = SamplingBuilder(
            defaults=self._defaults,
            info=self._engine.info,
            max_logprobs=self._config.generation.max_logprobs,
        )
        params = sampling.build_all(
            request,
            [len(prompt.token_ids) for prompt in prompts],
            guided=None if constraint is None else constraint.guided,
            bad_words_ids=self._renderer.encode_words(request.bad_words or ()),
            reasoning=reasoning,
        )
        if adapter_id := self._models.adapter_id(request.model):
            params = [msgspec.structs.replace(each, adapter_id=adapter_id) for each in params]
        return Generation(
            request=request,
            request_id=f"{id_prefix}-{context.header_id or request.request_id or uuid4().hex}",
            prompts=prompts,
            params=params,
            reasoning=reasoning,
            constraint_param=None if constraint is None else constraint.param,
            context=context,
        )

    def admit(self, generation: Generation) -> None:
        """Adds the prompts to the request's lease and log; on the event loop.

        Raises:
            OverloadedError: other requests hold too many bytes already.
        """
        set_request_id(generation.request_id)
        lease = generation.context.lease
        num_bytes = sum(prompt.inputs.num_bytes for prompt in generation.prompts if prompt.inputs is not None)
        if num_bytes:
            lease.add_bytes(num_bytes)
        lease.queue_tokens(generation.num_prompt_tokens * generation.request.num_choices)
        self._log(generation)

    def _log(self, generation: Generation) -> None:
        if not self._config.logging.enable_log_requests:
            return
        nums_tokens = ", ".join(str(len(prompt.token_ids)) for prompt in generation.prompts)
        logger.info("request %s: %s prompt tokens, %s", generation.request_id, nums_tokens, _show(generation.params[0]))


def _show(params: SamplingParams) -> str:
    """The parameters for the log: no text of the client, no secret, and only the beginning of a list."""
    shown: dict[str, Any] = {name: getattr(params, name) for name in params.__struct_fields__}
    if params.guided is not None:
        shown["guided"] = f"{params.guided.kind} of {len(params.guided.spec)} characters"
    if params.cache_salt is not None:
        shown["cache_salt"] = MASK
    for name, value in shown.items():
        if isinstance(value, tuple | dict):
            shown[name] = reprlib.repr(value)
    return ", ".join(f"{name}={value}" for name, value in shown.items())
