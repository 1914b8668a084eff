"""Builds the sampling parameters from a request, the server's defaults and the model's limits."""

import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from base.errors import ConfigError, RequestError
from server.config import ModelFiles
from server.generation.chat_request import ChatRequest
from server.generation.completion_request import CompletionRequest
from server.generation.reasoning import PromptReasoning
from server.http_body.fields import MinP, Penalty, RepetitionPenalty, Temperature, TokenCount, TopK, TopP
from server.renderers.prompts import check_token_ids
from server.server_config import GenerationConfig
from server.types import EngineInfo, GuidedDecoding, SamplingParams

logger = logging.getLogger(__name__)

AnyRequest = CompletionRequest | ChatRequest

_MIN_TEMPERATURE = 0.01
"""vLLM raises smaller positive temperatures to this: dividing by less overflows."""


class SamplingValues(msgspec.Struct, frozen=True, kw_only=True):
    """The values that a server may set for requests that omit them."""

    temperature: Temperature = 1.0
    top_p: TopP = 1.0
    top_k: TopK = 0
    min_p: MinP = 0.0
    presence_penalty: Penalty = 0.0
    frequency_penalty: Penalty = 0.0
    repetition_penalty: RepetitionPenalty = 1.0
    max_new_tokens: TokenCount | None = None


@dataclass(frozen=True, kw_only=True)
class SamplingDefaults:
    """The defaults of requests, read from where `--generation-config` points."""

    values: SamplingValues = SamplingValues()
    max_tokens_cap: int | None = None
    """Output limit of every request."""

    @classmethod
    def from_config(cls, config: GenerationConfig, files: ModelFiles) -> "SamplingDefaults":
        """Reads generation_config.json of the model or of the given folder, and applies the override.

        Raises:
            ConfigError: the folder has no such file, or a value is out of range.
        """
        override = config.override_generation_config
        found = {**_read_generation_config(config.generation_config, files), **override}
        given = {name: found[name] for name in SamplingValues.__struct_fields__ if found.get(name) is not None}
        try:
            values = msgspec.convert(given, SamplingValues)
        except msgspec.ValidationError as err:
            raise ConfigError("--override-generation-config", given, f"a valid generation config ({err})") from err
        if given:
            logger.info("sampling defaults from the generation config: %s", given)
        is_own_choice = config.generation_config not in ("auto", "vllm")
        return cls(
            values=values,
            max_tokens_cap=values.max_new_tokens if is_own_choice else override.get("max_new_tokens"),
        )


@dataclass(frozen=True, kw_only=True)
class SamplingBuilder:
    """Combines the server's defaults and the model's limits with a request."""

    defaults: SamplingDefaults
    info: EngineInfo
    max_logprobs: int

    def build_all(
        self,
        request: AnyRequest,
        nums_prompt_tokens: Sequence[int],
        *,
        guided: GuidedDecoding | None = None,
        bad_words_ids: Sequence[Sequence[int]] = (),
        reasoning: Sequence[PromptReasoning | None],
    ) -> list[SamplingParams]:
        """The parameters of each prompt, which share whatever does not depend on the prompt.

        Raises:
            RequestError: a value does not fit the model's vocabulary or context, or the server's limits.
        """
        budgets = [_output_budget(request, n, self.defaults, self.info.max_model_len) for n in nums_prompt_tokens]
        _check_token_ids(request, self.info.vocab_size)
        _check_min_tokens(request, budgets)
        shared = self._shared_params(request, guided, bad_words_ids)
        return [
            msgspec.structs.replace(
                shared, max_tokens=budget, reasoning=found and found.rules(request, has_grammar=guided is not None)
            )
            for budget, found in zip(budgets, reasoning, strict=True)
        ]

    def _shared_params(
        self, request: AnyRequest, guided: GuidedDecoding | None, bad_words_ids: Sequence[Sequence[int]]
    ) -> SamplingParams:
        """The parameters but for those that differ between prompts: `max_tokens` and `reasoning`."""
        return SamplingParams(
            max_tokens=1,
            min_tokens=request.min_tokens or 0,
            seed=None if request.seed == -1 else request.seed,
            stop_token_ids=tuple(dict.fromkeys(request.stop_token_ids or ())),
            ignore_eos=request.ignore_eos,
            logit_bias={token: min(100.0, max(-100.0, bias)) for token, bias in (request.logit_bias or {}).items()},
            bad_words_ids=tuple(map(tuple, bad_words_ids)),
            allowed_token_ids=tuple(dict.fromkeys(request.allowed_token_ids or ())),
            logprobs=self._num_logprobs(request.num_logprobs, "logprobs"),
            prompt_logprobs=self._num_logprobs(request.num_prompt_logprobs, "prompt_logprobs"),
            guided=guided,
            cache_salt=request.cache_salt,
            **_effective(request, self.defaults.values),
        )

    @property
    def _max_logprobs(self) -> int:
        return self.info.vocab_size if self.max_logprobs == -1 else self.max_logprobs

    def _num_logprobs(self, asked: int | None, param: str) -> int | None:
        """Resolves -1, the whole vocabulary, in the request's number and in the server's limit."""
        if asked is None:
            return None
        number = self.info.vocab_size if asked == -1 else asked
        if number > self._max_logprobs:
            raise RequestError(
                f"Requested {param} of {number}, which is greater than max allowed: {self._max_logprobs} "
                "(--max-logprobs).",
                param=param,
            )
        return number


def _read_generation_config(source: str, files: ModelFiles) -> dict[str, Any]:
    if source == "vllm":
        return {}
    path = (files.path if source == "auto" else Path(source)) / "generation_config.json"
    if not path.is_file() and source == "auto":
        return {}
    try:
        return dict(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError) as err:
        expected = f"`auto`, `vllm` or a folder with a readable generation_config.json ({err})"
        raise ConfigError("--generation-config", source, expected) from err


def _given(value: Any, default: Any) -> Any:
    return default if value is None else value


def _effective(request: AnyRequest, defaults: SamplingValues) -> dict[str, Any]:
    """The request's values, then the server's; greedy sampling has no filters."""
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
    """The least of the request's limit, the server's limits and the rest of the context."""
    asked, param = request.output_limit, request.output_limit_param
    if asked is not None and asked > max_model_len:
        raise RequestError(
            f"{param}={asked} cannot be greater than max_model_len={max_model_len} (--max-model-len). "
            "Please request fewer output tokens.",
            param=param,
        )
    if num_prompt_tokens >= max_model_len:
        raise RequestError(
            f"This model's maximum context length is {max_model_len} tokens (--max-model-len). However, your prompt "
            f"contains {num_prompt_tokens} input tokens, which leaves no room for output tokens. "
            "Please reduce the length of the input prompt.",
            param="input_tokens",
        )
    limits = (max_model_len - num_prompt_tokens, _given(asked, defaults.values.max_new_tokens), defaults.max_tokens_cap)
    budget = min(limit for limit in limits if limit is not None)
    if budget < 1:
        raise RequestError(f"{param} must be at least 1, got {budget}.", param=param)
    return budget


def _check_min_tokens(request: AnyRequest, budgets: Sequence[int]) -> None:
    """Raises RequestError if a prompt leaves room for fewer tokens than the request wants at least."""
    min_tokens, max_tokens = request.min_tokens or 0, min(budgets)
    if min_tokens > max_tokens:
        raise RequestError(
            f"min_tokens must be less than or equal to max_tokens={max_tokens}, got {min_tokens}.", param="min_tokens"
        )


def _check_token_ids(request: AnyRequest, vocab_size: int) -> None:
    if request.allowed_token_ids == []:
        raise RequestError("allowed_token_ids must not be empty; leave it out instead.", param="allowed_token_ids")
    for param in ("stop_token_ids", "logit_bias", "allowed_token_ids"):
        check_token_ids(getattr(request, param) or (), vocab_size=vocab_size, param=param)
