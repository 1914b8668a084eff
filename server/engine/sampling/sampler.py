"""Samples the next token of each sequence from its logits, and decides whether this token is the last one.

Parameters apply in vLLM's order. The raw log-probabilities are read first. Then grammar, token bans, logit
bias, penalties and the thinking budget apply. These also affect a greedy choice. Temperature, min-p, top-k
and top-p are in `server.engine.sampling.drawing`.
"""

import math
from collections.abc import Sequence as Seq
from functools import cached_property
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch

from server.engine.sampling.drawing import draw, new_generator
from server.engine.sampling.guided import GuidedDecodingError, GuidedStates
from server.engine.sequence import Chunk, Sequence
from server.terms.types import Fault, FinishReason, TokenLogprob

_GREEDY_BELOW = 1e-5
_MAX_ROWS = 32
"""The most rows computed at once. All rows of a prompt would take gigabytes with a large vocabulary."""


class SampleError(NamedTuple):
    """Why a sequence gets no token."""

    message: str
    fault: Fault = "request"


_EXCLUDED = SampleError("no token can be sampled: the request's parameters exclude all of them")
_NOT_FINITE = SampleError("no token can be sampled: the model's logits are not finite", "engine")


class Sampled(NamedTuple):
    """A sequence's next token."""

    sequence: Sequence
    token_id: int
    logprob: TokenLogprob | None
    error: SampleError | None = None
    """Why the sequence cannot continue: its grammar failed, or no token is allowed. None if it continues."""


class Ending(NamedTuple):
    """Whether a sequence ends with its new token, and why."""

    reason: FinishReason | None = None
    """Why the sequence ends. None if it continues."""
    stop_token_id: int | None = None
    """The new token, if it has ended the sequence."""
    error: str | None = None


_CONTINUES = Ending()


class Sampler:
    """The sampler of an engine. Every method runs on the engine's thread."""

    def __init__(
        self,
        *,
        eos_token_ids: tuple[int, ...],
        max_model_len: int,
        seed: int,
        device: torch.device,
        guided: GuidedStates,
    ) -> None:
        self._eos_token_ids = eos_token_ids
        self._max_model_len = max_model_len
        self._device = device
        self._seed = seed
        self._guided = guided

    @cached_property
    def _generator(self) -> torch.Generator:
        return new_generator(self._device, self._seed)

    def prepare(self) -> None:
        """Creates the random generator before the first draw."""
        _ = self._generator

    @torch.inference_mode()
    def sample(self, sequences: list[Sequence], logits: torch.Tensor) -> list[Sampled]:
        """Samples one token per sequence. May overwrite `logits`, of shape [len(sequences), vocab]."""
        blocks = [slice(begin, begin + _MAX_ROWS) for begin in range(0, len(sequences), _MAX_ROWS)]
        return [sampled for rows in blocks for sampled in self._sample(sequences[rows], logits[rows])]

    def _sample(self, sequences: list[Sequence], logits: torch.Tensor) -> list[Sampled]:
        described = [i for i, s in enumerate(sequences) if s.params.logprobs is not None]
        raw = logits[described] if described else None
        logits = logits.float()
        errors = self._restrict(sequences, logits)
        apply_penalties(sequences, logits)
        _force(sequences, logits)
        token_ids = self._pick(sequences, logits, errors)
        logprobs: dict[int, TokenLogprob] = {}
        if raw is not None:
            nums_top = [sequences[i].params.logprobs or 0 for i in described]
            found = describe(raw, [token_ids[i] for i in described], nums_top)
            logprobs = dict(zip(described, found, strict=True))
        return [Sampled(s, token_ids[i], logprobs.get(i), errors.get(i)) for i, s in enumerate(sequences)]

    def find_end(self, sequence: Sequence, token_id: int) -> Ending:
        """Advances grammar and reasoning by the new token. Returns whether this token ends the sequence."""
        params = sequence.params
        is_eos = token_id in self._eos_token_ids and not params.ignore_eos
        if is_eos or token_id in params.stop_token_ids:
            return Ending("stop", token_id)
        if params.guided is not None or params.reasoning is not None:
            try:
                if self._guided.accept(sequence, token_id):
                    return Ending("stop")
            except GuidedDecodingError as err:
                return Ending("error", error=str(err))
        if sequence.num_output_tokens >= params.max_tokens or sequence.num_tokens >= self._max_model_len:
            return Ending("length")
        return _CONTINUES

    def _restrict(self, sequences: list[Sequence], logits: torch.Tensor) -> dict[int, SampleError]:
        """Applies grammars, token bans and logit bias in place. Returns row -> error."""
        errors: dict[int, SampleError] = {}
        for i, sequence in enumerate(sequences):
            params, row = sequence.params, logits[i]
            if params.guided is not None:
                try:
                    self._guided.mask(sequence, row)
                except GuidedDecodingError as err:
                    errors[i] = SampleError(str(err), err.fault)
            if params.allowed_token_ids:
                _allow_only(row, params.allowed_token_ids)
            if sequence.num_output_tokens < params.min_tokens:
                self._ban_stops(sequence, row)
            if params.logit_bias:
                ids = torch.tensor(list(params.logit_bias), device=row.device)
                biases = list(params.logit_bias.values())
                row[ids] += torch.tensor(biases, dtype=row.dtype, device=row.device)
        return errors

    def _ban_stops(self, sequence: Sequence, row: torch.Tensor) -> None:
        stop_ids = [*self._eos_token_ids, *sequence.params.stop_token_ids]
        stops = torch.tensor(stop_ids, device=row.device).long()
        before = row[stops]
        row[stops] = float("-inf")
        if sequence.params.guided is not None and row.isneginf().all():
            # The grammar is complete: only the end may follow, even before `min_tokens`.
            row[stops] = before

    def _pick(self, sequences: list[Sequence], logits: torch.Tensor, errors: dict[int, SampleError]) -> list[int]:
        best = _argmax(logits)
        largest = logits.gather(1, best[:, None])[:, 0]
        token_ids: list[int] = best.tolist()
        for i, logit in enumerate(largest.tolist()):
            if not math.isfinite(logit):
                is_own_fault = math.isinf(logit) or sequences[i].params.repetition_penalty != 1.0
                errors.setdefault(i, _EXCLUDED if is_own_fault else _NOT_FINITE)
        drawn = [i for i, s in enumerate(sequences) if s.params.temperature >= _GREEDY_BELOW and i not in errors]
        if drawn:
            rows = logits if len(drawn) == len(sequences) else logits[drawn]
            chosen = [sequences[i] for i in drawn]
            drawn_ids = draw(rows, [s.params for s in chosen], self._uniform(chosen))
            for i, token_id in zip(drawn, drawn_ids, strict=True):
                token_ids[i] = token_id
        return token_ids

    def _uniform(self, sequences: list[Sequence]) -> torch.Tensor:
        """Returns one uniform number per sequence. A request with a seed has its own generator."""
        uniform = torch.rand(len(sequences), dtype=torch.float64, device=self._device, generator=self._generator)
        for i, sequence in enumerate(sequences):
            if sequence.params.seed is not None:
                if sequence.generator is None:
                    sequence.generator = new_generator(self._device, sequence.params.seed)
                uniform[i : i + 1].uniform_(generator=sequence.generator)
        return uniform


def _argmax(logits: torch.Tensor) -> torch.Tensor:
    """Returns each row's index of the first maximum or NaN. On a CPU, numpy is 13 times as fast as torch."""
    if logits.device.type == "cpu":
        return torch.from_numpy(logits.numpy().argmax(axis=-1))
    return logits.argmax(dim=-1)


def _force(sequences: list[Sequence], logits: torch.Tensor) -> None:
    """Allows only the end of the reasoning in sequences whose thinking budget is used up."""
    for i, sequence in enumerate(sequences):
        if sequence.reasoning is not None and sequence.reasoning.forced_token_id is not None:
            logits[i].fill_(float("-inf"))
            logits[i, sequence.reasoning.forced_token_id] = 0.0


def _allow_only(row: torch.Tensor, token_ids: tuple[int, ...]) -> None:
    ids = torch.tensor(token_ids, device=row.device)
    allowed = row[ids]
    row.fill_(float("-inf"))
    row[ids] = allowed


_NAMES = ("repetition_penalty", "frequency_penalty", "presence_penalty")


def apply_penalties(sequences: Seq[Sequence], logits: torch.Tensor) -> None:
    """Applies penalties in place. `logits` has one row per sequence.

    The repetition penalty counts prompt and output (CTRL, arXiv 1909.05858). Frequency and presence penalty
    count only the output.
    """
    penalised = [(i, s) for i, s in enumerate(sequences) if _has_penalty(s)]
    if not penalised:
        return
    counts = [_count_tokens(s) for _, s in penalised]
    vocab_size = logits.shape[-1]
    flat = [c.token_ids + i * vocab_size for c, (i, _) in zip(counts, penalised, strict=True)]
    where = torch.from_numpy(np.concatenate(flat)).to(logits.device)
    in_output = torch.from_numpy(np.concatenate([c.in_output for c in counts])).to(logits.device)
    params = [[getattr(s.params, name) for _, s in penalised] for name in _NAMES]
    repetition, frequency, presence = torch.tensor(params, device=logits.device).repeat_interleave(
        torch.tensor([len(c.token_ids) for c in counts], device=logits.device), dim=1
    )
    values = logits.view(-1)[where]
    values = torch.where(values > 0, values / repetition, values * repetition)
    values -= frequency * in_output + presence * (in_output > 0)
    logits.view(-1)[where] = values


def _has_penalty(sequence: Sequence) -> bool:
    p = sequence.params
    return bool(p.presence_penalty or p.frequency_penalty or p.repetition_penalty != 1.0)


class _TokenCounts(NamedTuple):
    """The distinct tokens of one sequence."""

    token_ids: npt.NDArray[np.int64]
    in_output: npt.NDArray[np.int64]
    """How often each token occurs in the output."""


def _count_tokens(sequence: Sequence) -> _TokenCounts:
    """Counts the tokens again in each step, which takes 70 us for 2000 tokens."""
    num_unknown = sequence.num_unknown_tokens
    known = np.array(sequence.token_ids[num_unknown:], dtype=np.int64)
    token_ids, places = np.unique(known, return_inverse=True)
    output = places[sequence.num_prompt_tokens - num_unknown :]
    return _TokenCounts(token_ids, np.bincount(output, minlength=len(token_ids)))


_LEAST = -9999.0
"""The log-probability that vLLM and OpenAI report for an impossible token, because JSON has no infinity."""


def add_prompt_logprobs(chunk: Chunk, logits: torch.Tensor) -> None:
    """Adds, for each token of a chunk, the log-probability of the prompt token after it.

    `logits` are those of all tokens of the chunk. A prompt's first token has no log-probability.
    """
    sequence, wanted = chunk.sequence, chunk.sequence.params.prompt_logprobs or 0
    following = sequence.token_ids[chunk.begin + 1 : min(chunk.end + 1, sequence.num_prompt_tokens)]
    if sequence.prompt_logprobs is None:
        sequence.prompt_logprobs = [None]
    sequence.prompt_logprobs += describe(logits[: len(following)], following, [wanted] * len(following))


def describe(logits: torch.Tensor, token_ids: Seq[int], nums_top: Seq[int]) -> list[TokenLogprob]:
    """Returns log-probabilities of one token in each row, and of the row's most likely tokens.

    Args:
        logits: shape [rows, vocab].
        token_ids: the token of each row, either the sampled token or the next token of the prompt.
        nums_top: how many of the most likely tokens to report for each row.
    """
    result: list[TokenLogprob] = []
    for begin in range(0, len(token_ids), _MAX_ROWS):
        rows = slice(begin, begin + _MAX_ROWS)
        result += _describe(torch.log_softmax(logits[rows].float(), dim=-1), token_ids[rows], nums_top[rows])
    return result


def _describe(logprobs: torch.Tensor, token_ids: Seq[int], nums_top: Seq[int]) -> list[TokenLogprob]:
    own = logprobs.gather(1, torch.tensor(token_ids, device=logprobs.device)[:, None])
    ranks = (logprobs > own).sum(dim=-1).add_(1).tolist()
    values, indices = torch.topk(logprobs, min(max(nums_top), logprobs.shape[-1]))
    top_values, top_ids = values.clamp(min=_LEAST).tolist(), indices.tolist()
    own_values = own[:, 0].clamp(min=_LEAST).tolist()
    described: list[TokenLogprob] = []
    for i, (token_id, num) in enumerate(zip(token_ids, nums_top, strict=True)):
        top = list(zip(top_ids[i][:num], top_values[i][:num], strict=True))
        described.append(TokenLogprob(token_id, own_values[i], ranks[i], top))
    return described
