"""Reasoning in requests: its markers as tokens, its state after a prompt, and the rules for the engine."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TypeVar

from server.engine.sampling.reasoning import MarkerFinder
from server.generation.generation_request import ChatRequest, CompletionRequest
from server.terms.server_config import AUTO, GenerationConfig
from server.terms.types import ReasoningMarker, ReasoningRules
from server.text.model_files import read_json_object
from server.text.parsers.detection import Detected, ModelFacts, detect_reasoning_format
from server.text.parsers.formats import REASONING_FORMATS, ReasoningFormat
from server.text.parsers.output_parser import PromptEnd
from server.text.renderers.prompts import RenderedPrompt
from server.text.renderers.renderer import Renderer

logger = logging.getLogger(__name__)

Format = TypeVar("Format")

_TURN_BOUNDARIES = (
    *("<|im_start|>", "<|im_end|>", "<|im_user|>", "<|im_assistant|>"),
    *("<|system|>", "<|user|>", "<|assistant|>", "<|observation|>", "<assistant>"),
    *("<|start_of_role|>", "<|end_of_role|>", "<|extra_0|>", "<|eos|>", "<|turn>", "<|tool_response>", "<|start|>"),
    *("<｜User｜>", "<｜Assistant｜>", "<seed:bos>", "<seed:eos>"),
)
"""Tokens between messages of a prompt. Reasoning before the last such token belongs to earlier messages."""

_TAIL_CHARS, _TAIL_TOKENS = 50_000, 512
"""How much of a prompt's end is searched for markers that consist of ordinary tokens."""


def load_reasoning(config: GenerationConfig, renderer: Renderer) -> "ModelReasoning | None":
    """Loads the format of `--reasoning-parser`. None without this flag, or if `auto` finds no format."""
    name = config.reasoning_parser
    if name == AUTO:
        facts = read_model_facts(renderer)
        own, detected = facts.own_formats()[1], detect_reasoning_format(facts)
        found = choose_detected("--reasoning-parser", own, detected, REASONING_FORMATS, "all output is content")
    else:
        found = None if name is None else REASONING_FORMATS[name]
    return ModelReasoning(found, config, renderer) if found else None


class ModelReasoning:
    """The format of the server's model, with the format's markers as tokens."""

    def __init__(self, format: ReasoningFormat, config: GenerationConfig, renderer: Renderer) -> None:
        self._format = format
        self._budget_start: str = config.reasoning_config.get("reasoning_start_str", "")
        self._forced_end: str = config.reasoning_config.get("reasoning_end_str", "")
        self._renderer = renderer

    @property
    def has_end(self) -> bool:
        """Whether the server can end the reasoning, which a limit of its length requires."""
        return self._format.has_budget

    @cached_property
    def keeps_special_tokens(self) -> bool:
        """Whether a marker has a special token. If so, the detokenizer must not skip special tokens."""
        tokenizer = self._renderer.tokenizer
        markers = "\n".join((*self._starts, *self._format.ends))
        added = [token_id for token_id, text in tokenizer.added_tokens.items() if text in markers]
        return any(not tokenizer.decode([token_id], skip_special_tokens=True) for token_id in added)

    def of_prompt(
        self, request: CompletionRequest | ChatRequest, prompt: RenderedPrompt, *, has_grammar: bool
    ) -> "PromptReasoning | None":
        """Returns the reasoning in the outputs of a prompt. None if the request switches reasoning off.

        The result is also None for a chat request with a grammar if `include_reasoning` is false. As in vLLM,
        the grammar then applies from the first token on.
        """
        kwargs = self._renderer.config.default_chat_template_kwargs
        if isinstance(request, ChatRequest):
            if has_grammar and not request.include_reasoning:
                return None
            kwargs = kwargs | request.template_kwargs
        if not self._format.is_used(kwargs):
            return None
        end, num_spent = self._read_end(prompt, counts_tokens=request.thinking_budget is not None)
        return PromptReasoning(self._format, self._markers, end, num_spent, self._renderer)

    @property
    def _starts(self) -> tuple[str, ...]:
        starts, own = self._format.starts, self._budget_start
        return starts if own in ("", *starts) else (*starts, own)

    @cached_property
    def _markers(self) -> "_Markers":
        ids = {text: token_id for token_id, text in self._renderer.tokenizer.added_tokens.items()}
        starts, ends, pauses = (
            tuple(ReasoningMarker(text, ids.get(text)) for text in texts)
            for texts in (self._starts, self._format.ends, self._format.pauses)
        )
        return _Markers(
            starts=starts,
            ends=ends,
            pauses=pauses,
            answer_starts=tuple(ReasoningMarker(text, ids.get(text), True) for text in self._format.answer_starts),
            forced_end=tuple(self._encode(self._forced_end or self._format.ends[0])),
            num_extra_tokens={
                marker: len(self._encode(marker.text)) - 1 for marker in starts + ends if marker.token_id is None
            },
        )

    @cached_property
    def _ends_of_prompt(self) -> dict[int, PromptEnd]:
        """Token of a marker -> the state at a prompt's end, if this marker is the last one in the prompt."""
        found = {m.token_id: PromptEnd.ENDED for m in self._markers.ends}
        found |= {m.token_id: PromptEnd.OPEN for m in self._markers.starts}
        return {token_id: end for token_id, end in found.items() if token_id is not None}

    @cached_property
    def _boundary_ids(self) -> frozenset[int]:
        added = self._renderer.tokenizer.added_tokens.items()
        return frozenset(token_id for token_id, text in added if text in _TURN_BOUNDARIES)

    def _read_end(self, prompt: RenderedPrompt, *, counts_tokens: bool) -> tuple[PromptEnd, int]:
        """Returns the state at the prompt's end.

        If `counts_tokens`, also returns the number of tokens of open reasoning.
        """
        if self._markers.have_text:
            end, text = self._read_end_of_text(prompt)
            return end, len(self._encode(text)) if counts_tokens and end is PromptEnd.OPEN else 0
        ends, boundaries = self._ends_of_prompt, self._boundary_ids
        for num_after, token_id in enumerate(reversed(prompt.known_token_ids)):
            if token_id in ends:
                return ends[token_id], num_after if ends[token_id] is PromptEnd.OPEN else 0
            if token_id in boundaries:
                break
        return PromptEnd.SILENT, 0

    def _read_end_of_text(self, prompt: RenderedPrompt) -> tuple[PromptEnd, str]:
        """Returns the state after the last marker in the prompt, and the text after this marker."""
        if prompt.text is not None:
            text = prompt.text[-_TAIL_CHARS:]
        else:
            tail = prompt.known_token_ids[-_TAIL_TOKENS:]
            text = self._renderer.tokenizer.decode(tail, skip_special_tokens=False)
        last = {PromptEnd.SILENT: max(text.rfind(boundary) for boundary in _TURN_BOUNDARIES)}
        last[PromptEnd.OPEN] = _last_end(text, self._markers.starts)
        last[PromptEnd.ENDED] = _last_end(text, self._markers.ends)
        end = max(last, key=lambda key: last[key])
        return end, text[max(last[end], 0) :]

    def _encode(self, text: str) -> list[int]:
        return self._renderer.tokenizer.encode(text, add_special_tokens=False) if text else []


def _last_end(text: str, markers: Sequence[ReasoningMarker]) -> int:
    """The end of the last marker in the text. -1 if it contains none of them."""
    ends = [text.rfind(marker.text) + len(marker.text) for marker in markers if marker.text in text]
    return max(ends, default=-1)


def choose_detected(
    flag: str, own: Format | None, found: Detected | None, formats: Mapping[str, Format], otherwise: str
) -> Format | None:
    """Returns the model's own format, or else the detected one, for the flag's value `auto`. Logs which."""
    if own is not None:
        logger.info("%s auto: the model's own response_template", flag)
        return own
    if found is None:
        logger.warning("%s auto: the model's files name no format, so %s", flag, otherwise)
        return None
    logger.info("%s auto: %s, by the model's %s", flag, found.name, found.source)
    return formats[found.name]


@dataclass(frozen=True, kw_only=True)
class _Markers:
    """The markers of a format as tokens."""

    starts: tuple[ReasoningMarker, ...]
    ends: tuple[ReasoningMarker, ...]
    pauses: tuple[ReasoningMarker, ...]
    answer_starts: tuple[ReasoningMarker, ...]
    forced_end: tuple[int, ...]
    num_extra_tokens: dict[ReasoningMarker, int]
    """Marker of ordinary tokens -> the number of its tokens before the last token."""

    @property
    def have_text(self) -> bool:
        """Whether a start or end marker consists of ordinary tokens."""
        return bool(self.num_extra_tokens)


@dataclass(frozen=True)
class PromptReasoning:
    """The format of reasoning, and the state of reasoning with which a prompt's outputs begin."""

    format: ReasoningFormat
    markers: _Markers
    prompt_end: PromptEnd
    num_spent_tokens: int
    """The number of tokens of open reasoning at the end of the prompt."""
    renderer: Renderer

    def rules(self, request: CompletionRequest | ChatRequest, *, has_grammar: bool) -> ReasoningRules | None:
        """Returns the rules for the engine. None if the engine needs no rules for this request."""
        waits = has_grammar and self.prompt_end is not PromptEnd.ENDED
        budget = None if has_grammar and not waits else request.thinking_budget
        if budget is None and not waits:
            return None
        is_silent = self.prompt_end is PromptEnd.SILENT and not self.format.is_open_at_start
        is_optional = waits and is_silent and all(marker.token_id is not None for marker in self.markers.starts)
        return ReasoningRules(
            starts=self.markers.starts,
            ends=self.markers.ends + self.markers.answer_starts,
            delays_grammar=waits and not is_optional,
            is_optional=is_optional,
            is_open=self.prompt_end is PromptEnd.OPEN,
            budget=budget,
            num_spent_tokens=self.num_spent_tokens,
            forced_end=self.markers.forced_end,
        )


class ReasoningCounter:
    """Counts the tokens of one choice's reasoning, without its markers."""

    def __init__(self, reasoning: PromptReasoning) -> None:
        markers = reasoning.markers
        end = reasoning.prompt_end
        token_bytes = reasoning.renderer.tokenizer.token_bytes if markers.have_text else None
        self._starts = MarkerFinder(markers.starts, token_bytes)
        self._ends = MarkerFinder(markers.ends + markers.answer_starts, token_bytes)
        self._pauses = MarkerFinder(markers.pauses, token_bytes)
        self._num_extra_tokens = max(markers.num_extra_tokens.values(), default=0)
        self._has_ended = end is PromptEnd.ENDED
        self._is_open = end is PromptEnd.OPEN or (end is PromptEnd.SILENT and reasoning.format.is_open_at_start)
        self.num_tokens = 0

    def add(self, token_ids: Sequence[int]) -> None:
        for token_id in token_ids:
            if self._has_ended:
                return
            if self._starts.add(token_id) is not None:
                self._drop_marker()
                self._is_open = True
            elif self._ends.add(token_id) is not None:
                self._drop_marker()
                self._has_ended = True
            elif self._pauses.add(token_id) is not None:
                self._is_open = False
            elif self._is_open:
                self.num_tokens += 1

    def _drop_marker(self) -> None:
        """Subtracts a marker of ordinary tokens. Its tokens were counted, except for the last token."""
        if self._is_open:
            self.num_tokens = max(0, self.num_tokens - self._num_extra_tokens)


def read_model_facts(renderer: Renderer) -> ModelFacts:
    """Reads the properties by which the formats of the renderer's model are detected."""
    return ModelFacts(
        template=renderer.tool_template,
        model_type=read_model_type(renderer),
        tokens=set(renderer.tokenizer.added_tokens.values()),
        response_template=read_json_object(renderer.files.tokenizer_path / "tokenizer_config.json").get(
            "response_template"
        ),
    )


def read_model_type(renderer: Renderer) -> str | None:
    """Returns the model type in config.json, such as `llama`."""
    return read_json_object(renderer.files.path / "config.json").get("model_type")
