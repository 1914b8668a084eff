"""Prepares rendered requests for the engine: sampling parameters, constraints and admission."""

import logging
import reprlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple
from uuid import uuid4

import msgspec

from base.errors import ConfigError, PromptTooLongError, RequestError
from base.http_requests import REQUEST_ID
from base.json_depth import read_json
from envs.redaction import MASK
from server.generation.generation_request import ChatRequest, CompletionRequest
from server.generation.guided import Constraint, find_constraint
from server.generation.reasoning import ModelReasoning, PromptReasoning
from server.operation.admission import RequestContext
from server.operation.models import Inference
from server.terms.config import ModelFiles
from server.terms.sampling_values import FILE, FLAG, SamplingValues, find_values
from server.terms.server_config import GenerationConfig
from server.terms.types import EngineInfo, EnginePrompt, FinishReason, GuidedDecoding, SamplingParams, TokenLogprob
from server.text.renderers.detokenizer import PromptTail
from server.text.renderers.prompts import RenderedPrompt, check_token_ids

AnyRequest = CompletionRequest | ChatRequest

_MIN_TEMPERATURE = 0.01
"""As in vLLM, smaller positive temperatures are raised to this value, because division by them overflows."""
_MOST_PROMPT_LOGPROBS = 1 << 19
"""The most log-probabilities of prompt tokens in several choices. Each takes a few hundred bytes."""

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class SamplingDefaults:
    """Combines a request's values with the server's defaults and limits. A server has one such object."""

    values: SamplingValues = SamplingValues()
    """The values from `--generation-config`."""
    max_tokens_cap: int | None = None
    """The most generated tokens of every request. None means no limit."""
    max_logprobs: int = 20
    """The most candidates per token. -1 allows the whole vocabulary."""

    @classmethod
    def from_config(cls, config: GenerationConfig, files: ModelFiles) -> "SamplingDefaults":
        """Reads generation_config.json from the model's or the configured folder, and applies the overrides.

        Raises:
            ConfigError: the folder has no such file, or no engine would start with one of its values.
        """
        file = _file_of(config.generation_config, files)
        in_file = find_values(_read_generation_config(config.generation_config, file), str(file))
        override = find_values(config.override_generation_config, FLAG)
        for fault in (*in_file.faults, *override.faults):
            if fault.is_fatal:
                raise ConfigError("--generation-config", config.generation_config, f"a valid one. {fault.text}")
            logger.warning("%s", fault.text)
        given = {**in_file.values, **override.values}
        values = msgspec.convert(given, SamplingValues)
        if given:
            logger.info("sampling defaults from the generation config: %s", given)
        is_own_choice = config.generation_config not in ("auto", "vllm")
        return cls(
            values=values,
            max_tokens_cap=values.max_new_tokens if is_own_choice else override.values.get("max_new_tokens"),
            max_logprobs=config.max_logprobs,
        )

    def build_all(
        self,
        request: AnyRequest,
        nums_prompt_tokens: Sequence[int],
        info: EngineInfo,
        *,
        guided: GuidedDecoding | None = None,
        reasoning: Sequence[PromptReasoning | None],
    ) -> list[SamplingParams]:
        """Returns each prompt's sampling parameters. Only `max_tokens` and `reasoning` depend on the prompt.

        Raises:
            RequestError: a value does not fit the model's vocabulary or context, or the server's limits.
        """
        budgets = [_output_budget(request, n, self, info.max_model_len) for n in nums_prompt_tokens]
        _check_token_ids(request, info.vocab_size)
        shared = self._shared_params(request, info.vocab_size, guided)
        _check_prompt_logprobs(request, nums_prompt_tokens, shared.prompt_logprobs)
        min_tokens, max_tokens = request.min_tokens or 0, min(budgets)
        if min_tokens > max_tokens:
            raise RequestError(
                f"min_tokens must be less than or equal to max_tokens={max_tokens}, got {min_tokens}.",
                param="min_tokens",
            )
        return [
            msgspec.structs.replace(
                shared, max_tokens=budget, reasoning=found and found.rules(request, has_grammar=guided is not None)
            )
            for budget, found in zip(budgets, reasoning, strict=True)
        ]

    def _shared_params(self, request: AnyRequest, vocab_size: int, guided: GuidedDecoding | None) -> SamplingParams:
        """Returns the parameters that all prompts share: all except `max_tokens` and `reasoning`."""
        return SamplingParams(
            max_tokens=1,
            min_tokens=request.min_tokens or 0,
            seed=None if request.seed == -1 else request.seed,
            stop_token_ids=tuple(dict.fromkeys(request.stop_token_ids or ())),
            ignore_eos=request.ignore_eos,
            logit_bias={token: min(100.0, max(-100.0, bias)) for token, bias in (request.logit_bias or {}).items()},
            allowed_token_ids=tuple(dict.fromkeys(request.allowed_token_ids or ())),
            logprobs=self._num_logprobs(request.num_logprobs, vocab_size, "logprobs"),
            prompt_logprobs=self._num_logprobs(request.num_prompt_logprobs, vocab_size, "prompt_logprobs"),
            guided=guided,
            cache_salt=request.cache_salt,
            **_effective(request, self.values),
        )

    def _num_logprobs(self, asked: int | None, vocab_size: int, param: str) -> int | None:
        """Checks the number of candidates. In a request or as the limit, -1 is the whole vocabulary."""
        if asked is None:
            return None
        number, most = (vocab_size if limit == -1 else limit for limit in (asked, self.max_logprobs))
        if number > most:
            raise RequestError(
                f"Requested {param} of {number}, which is greater than max allowed: {most} (--max-logprobs).",
                param=param,
            )
        return number


def _file_of(source: str, files: ModelFiles) -> Path:
    return (files.path if source in ("auto", "vllm") else Path(source)) / FILE


def _read_generation_config(source: str, path: Path) -> dict[str, Any]:
    if source == "vllm" or (source == "auto" and not path.is_file()):
        return {}
    try:
        return dict(read_json(path.read_text(encoding="utf-8")))
    except (OSError, TypeError, ValueError) as err:
        expected = f"`auto`, `vllm` or a folder with a readable {FILE} ({err})"
        raise ConfigError("--generation-config", source, expected) from err


def _given(value: Any, default: Any) -> Any:
    return default if value is None else value


def _effective(request: AnyRequest, defaults: SamplingValues) -> dict[str, Any]:
    """Returns the request's values, or else the server's.

    Greedy sampling ignores `top_p`, `top_k` and `min_p`.
    """
    names = ("temperature", "top_p", "top_k", "min_p", "presence_penalty", "frequency_penalty", "repetition_penalty")
    values = {name: _given(getattr(request, name), getattr(defaults, name)) for name in names}
    values["top_k"] = max(values["top_k"], 0)
    if values["temperature"] > 0:
        values["temperature"] = max(values["temperature"], _MIN_TEMPERATURE)
        return values
    if request.num_choices > 1:
        raise RequestError(f"n must be 1 when using greedy sampling, got {request.num_choices}.", param="n")
    return values | {"top_p": 1.0, "top_k": 0, "min_p": 0.0}


def _output_budget(request: AnyRequest, num_prompt_tokens: int, defaults: SamplingDefaults, max_model_len: int) -> int:
    """Returns the most tokens to generate, by the limits of the request, the server and the context."""
    asked, param = request.output_limit, request.output_limit_param
    if asked is not None and asked > max_model_len:
        raise RequestError(
            f"{param}={asked} cannot be greater than max_model_len={max_model_len}. Please request fewer output "
            f"tokens. (parameter={param}, value={asked})",
            param=param,
        )
    if num_prompt_tokens >= max_model_len:
        raise PromptTooLongError(num_prompt_tokens, max_model_len)
    limits = (max_model_len - num_prompt_tokens, _given(asked, defaults.values.max_new_tokens), defaults.max_tokens_cap)
    budget = min(limit for limit in limits if limit is not None)
    if budget < 1:
        raise RequestError(f"{param} must be at least 1, got {budget}.", param=param)
    return budget


def _check_prompt_logprobs(request: AnyRequest, nums_prompt_tokens: Sequence[int], num_top: int | None) -> None:
    """Each choice has the log-probabilities of its prompt. A request's only choice may have any number."""
    number = sum(nums_prompt_tokens) * request.num_choices * (1 + (num_top or 0))
    if num_top is not None and request.num_choices * len(nums_prompt_tokens) > 1 and number > _MOST_PROMPT_LOGPROBS:
        raise RequestError(
            f"All choices together have {number} log-probabilities of prompt tokens, of at most "
            f"{_MOST_PROMPT_LOGPROBS}. Ask for fewer choices, prompts or log-probabilities.",
            param="prompt_logprobs",
        )


def _check_token_ids(request: AnyRequest, vocab_size: int) -> None:
    if request.allowed_token_ids == []:
        raise RequestError("allowed_token_ids must not be empty. Leave it out instead.", param="allowed_token_ids")
    for param in ("stop_token_ids", "logit_bias", "allowed_token_ids"):
        check_token_ids(getattr(request, param) or (), vocab_size=vocab_size, param=param)


class SequenceDelta(NamedTuple):
    """The output of one engine step for one sequence."""

    choice: int
    """The index of the choice in the request."""
    text: str
    token_ids: list[int]
    logprobs: list[TokenLogprob] | None = None
    finish_reason: FinishReason | None = None
    stop_reason: int | str | None = None
    prompt_logprobs: list[TokenLogprob | None] | None = None
    num_cached_tokens: int = 0


@dataclass(kw_only=True)
class Generation:
    """A request that runs each of its prompts `n` times. The choices are in the order of the prompts."""

    request: CompletionRequest | ChatRequest
    request_id: str
    """The id in the response. The engine gets other, unique ids, because clients may choose this id."""
    prompts: Sequence[RenderedPrompt]
    params: Sequence[SamplingParams]
    reasoning: Sequence[PromptReasoning | None]
    """The reasoning of each prompt. None for a prompt after which the model does not reason."""
    constraint_param: str | None
    """The request's field that sets the constraint of guided decoding. None if there is no constraint."""
    context: RequestContext
    num_prompt_tokens: int = field(init=False)
    prompt_tails: tuple[PromptTail, ...] = field(init=False)
    """The end of each prompt, which all of the prompt's choices share."""
    engine_prompts: list[EnginePrompt] = field(init=False)

    def __post_init__(self) -> None:
        """Runs in the renderer pool, because the time grows with the number of prompts."""
        self.num_prompt_tokens = sum(len(prompt.token_ids) for prompt in self.prompts)
        self.prompt_tails = tuple(PromptTail(prompt.known_token_ids) for prompt in self.prompts)
        self.engine_prompts = [
            EnginePrompt(prompt.token_ids, params, prompt.inputs)
            for prompt, params in zip(self.prompts, self.params, strict=True)
        ]

    @property
    def num_choices(self) -> int:
        """The number of choices of the whole request."""
        return len(self.prompts) * self.request.num_choices

    def prompt_of(self, index: int) -> RenderedPrompt:
        return self.prompts[index // self.request.num_choices]

    def reasoning_of(self, index: int) -> PromptReasoning | None:
        return self.reasoning[index // self.request.num_choices]


class GenerationBuilder:
    """Builds the `Generation` of a chat or a completion. A server has one such object."""

    def __init__(self, inference: Inference, reasoning: ModelReasoning | None) -> None:
        """`reasoning` is None for a server without a reasoning parser."""
        self._config = inference.config
        self._engine = inference.engine
        self._reasoning = reasoning
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
        """Builds the generation of a request. This call blocks, so it runs in the renderer pool.

        `id_prefix` is the beginning of the response's id. `strict_tools` applies if the request sets no
        constraint itself.

        Raises:
            RequestError: the request does not fit the model.
        """
        constraint = (find_constraint(request) if request.is_guided else None) or strict_tools
        if request.thinking_budget is not None and (self._reasoning is None or not self._reasoning.has_end):
            raise RequestError(
                "`thinking_token_budget` needs a server with a --reasoning-parser whose reasoning can be ended.",
                param="thinking_token_budget",
            )
        reasoning: list[PromptReasoning | None] = [None] * len(prompts)
        if (model := self._reasoning) is not None:
            reasoning = [model.of_prompt(request, prompt, has_grammar=constraint is not None) for prompt in prompts]
        params = self._defaults.build_all(
            request,
            [len(prompt.token_ids) for prompt in prompts],
            self._engine.info,
            guided=None if constraint is None else constraint.guided,
            reasoning=reasoning,
        )
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
        """Adds the prompts to the request's share of the limits, and logs them. Called on the event loop.

        Raises:
            OverloadedError: other requests already hold too many bytes.
        """
        REQUEST_ID.set(generation.request_id)
        lease = generation.context.lease
        num_bytes = sum(prompt.inputs.num_bytes for prompt in generation.prompts if prompt.inputs is not None)
        if num_bytes:
            lease.add_bytes(num_bytes)
        lease.queue_tokens(generation.num_prompt_tokens * generation.request.num_choices)
        if self._config.logging.enable_log_requests:
            nums_tokens = ", ".join(str(len(prompt.token_ids)) for prompt in generation.prompts)
            params = _show(generation.params[0])
            logger.info("request %s: %s prompt tokens, %s", generation.request_id, nums_tokens, params)


def _show(params: SamplingParams) -> str:
    """Returns the parameters for the log, without the client's texts and secrets. Shortens lists."""
    shown: dict[str, Any] = {name: getattr(params, name) for name in params.__struct_fields__}
    if params.guided is not None:
        shown["guided"] = f"{params.guided.kind} of {len(params.guided.spec)} characters"
    if params.cache_salt is not None:
        shown["cache_salt"] = MASK
    for name, value in shown.items():
        if isinstance(value, tuple | dict):
            shown[name] = reprlib.repr(value)
    return ", ".join(f"{name}={value}" for name, value in shown.items())
