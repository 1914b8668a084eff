"""Reported log-probabilities: those of the model's raw distribution, before bans and penalties."""

from collections.abc import Sequence as Seq

import torch

from server.engine.sequence import Chunk
from server.types import TokenLogprob

_MAX_ROWS = 64
"""Rows computed at once: all rows of a prompt would take gigabytes with a large vocabulary."""
_LEAST = -9999.0
"""JSON has no infinity; vLLM and OpenAI report this for an impossible token."""


def add_prompt_logprobs(chunk: Chunk, logits: torch.Tensor) -> None:
    """Adds to its sequence those of the prompt tokens after a chunk's; the first token of a prompt has none.

    Args:
        logits: those of all tokens of the chunk.
    """
    sequence, wanted = chunk.sequence, chunk.sequence.params.prompt_logprobs or 0
    following = sequence.token_ids[chunk.begin + 1 : min(chunk.end + 1, sequence.num_prompt_tokens)]
    if sequence.prompt_logprobs is None:
        sequence.prompt_logprobs = [None]
    sequence.prompt_logprobs += describe(logits[: len(following)], following, [wanted] * len(following))


def describe(logits: torch.Tensor, token_ids: Seq[int], nums_top: Seq[int]) -> list[TokenLogprob]:
    """The log-probabilities of one token per row, and of the most likely ones.

    Args:
        logits: shape [rows, vocab].
        token_ids: the token of each row: the sampled one, or the next one of the prompt.
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
    return [
        TokenLogprob(token_id, own_values[i], ranks[i], list(zip(top_ids[i][:num], top_values[i][:num], strict=True)))
        for i, (token_id, num) in enumerate(zip(token_ids, nums_top, strict=True))
    ]
