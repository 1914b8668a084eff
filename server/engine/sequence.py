"""A sequence in the engine (its tokens, the number of computed tokens, its memory), and its chunks."""

from functools import cache
from hashlib import blake2b
from os import urandom
from time import monotonic
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import numpy.typing as npt

from server.terms.types import SamplingParams, TokenLogprob

if TYPE_CHECKING:
    import torch

    from server.engine.prompt_features import PromptFeatures
    from server.engine.sampling.grammar import Grammar
    from server.engine.sampling.reasoning import ReasoningState


class Sequence:
    """The prompt and output of one choice of a request. Only the engine's thread changes it."""

    def __init__(self, request_id: str, prompt_token_ids: list[int], params: SamplingParams) -> None:
        self.request_id = request_id
        self.params = params
        self.features: PromptFeatures | None = None
        """The features of a prompt with images or embeddings. None for other prompts."""
        self.token_ids = prompt_token_ids
        """The tokens of prompt and output. A prompt's sequences share the list until the first output
        token."""
        self.num_prompt_tokens = len(prompt_token_ids)
        self.num_computed_tokens = 0
        """The number of tokens whose keys and values (or model state) are in the cache."""
        self.num_cached_tokens = 0
        """The prompt tokens that came from the prefix cache when the sequence was first admitted."""
        self.slot = -1
        """The slot of the KV cache that the sequence holds while it runs. -1 if it holds no slot."""
        self.model_cache: Any = None
        """The model's own cache object, for the sequential runner. None before the first computed token."""
        self.prompt_logprobs: list[TokenLogprob | None] | None = None
        """The log-probabilities of computed prompt tokens, until the first output contains them."""
        self.num_preemptions = 0
        self.arrival_s = monotonic()
        self.admitted_s = 0.0
        """The time of the monotonic clock at which the sequence was first admitted."""
        self.generator: torch.Generator | None = None
        self.reasoning: ReasoningState | None = None
        """The state of the rules for reasoning. None if the parameters have no such rules."""
        self.grammar: Grammar | None = None
        """The compiled grammar. None if the parameters have none, and no rule for reasoning needs a
        tokenizer."""
        self.has_grammar_copy = False
        """Whether memory for a copy of the grammar is reserved."""
        self._salt_id = 0 if params.cache_salt is None else _hash_salt(params.cache_salt)

    @property
    def num_tokens(self) -> int:
        return len(self.token_ids)

    @property
    def num_output_tokens(self) -> int:
        return len(self.token_ids) - self.num_prompt_tokens

    @property
    def num_unknown_tokens(self) -> int:
        """The number of tokens whose ids mean nothing: all tokens of a prompt of embeddings, otherwise 0."""
        return 0 if self.features is None or self.features.has_token_ids else self.num_prompt_tokens

    @property
    def is_private(self) -> bool:
        """Whether the prefix cache must not keep this sequence, because rows of its features have no ids."""
        return self.features is not None and self.features.row_ids is None

    @property
    def can_reuse_prefix(self) -> bool:
        """Whether a cached prefix may be used. Prompt log-probabilities need the logits of all tokens."""
        return self.params.prompt_logprobs is None and not self.is_private

    def append(self, token_id: int) -> None:
        if self.is_first_pass:
            self.token_ids = list(self.token_ids)
        self.token_ids.append(token_id)

    def restart(self) -> None:
        """Makes a preempted sequence wait again. Keeps its generated tokens."""
        self.num_computed_tokens = 0
        self.num_preemptions += 1
        self.prompt_logprobs = None

    def cache_ids(self, end: int) -> npt.NDArray[np.int64]:
        """Keys of the first `end` tokens in the prefix cache: ids of tokens, or of rows that replace them.

        A cache salt changes the first key, so only prompts with the same salt have a common prefix.
        """
        rows = None if self.features is None else self.features.row_ids
        if rows is None:
            ids = np.asarray(self.token_ids[:end], dtype=np.int64)
        else:
            rest = np.asarray(self.token_ids[len(rows) : end], dtype=np.int64)
            ids = np.concatenate((rows[:end], rest))
        if self._salt_id and end:
            ids[0] ^= self._salt_id
        return ids

    def has_prompt_of(self, other: "Sequence") -> bool:
        """Whether both sequences have the same prompt: tokens, features and salt are equal."""
        if self._salt_id != other._salt_id:
            return False
        if self.features is other.features:
            return self.token_ids is other.token_ids or self.token_ids == other.token_ids
        if self.features is None or other.features is None or self.features.row_ids is None:
            return False
        return np.array_equal(self.cache_ids(self.num_tokens), other.cache_ids(other.num_tokens))

    @property
    def num_new_tokens(self) -> int:
        """The number of tokens that must be computed before the next token can be sampled."""
        return len(self.token_ids) - self.num_computed_tokens

    @property
    def is_first_pass(self) -> bool:
        """Whether no token has been sampled yet."""
        return self.num_output_tokens == 0


class Chunk(NamedTuple):
    """Consecutive tokens of a sequence for one step, from the first token that is not computed."""

    sequence: Sequence
    num_tokens: int

    @property
    def begin(self) -> int:
        return self.sequence.num_computed_tokens

    @property
    def end(self) -> int:
        return self.begin + self.num_tokens

    @property
    def num_prompt_rows(self) -> int:
        """The number of the chunk's tokens that belong to the prompt."""
        return max(0, min(self.end, self.sequence.num_prompt_tokens) - self.begin)

    @property
    def is_decode(self) -> bool:
        return self.num_tokens == 1 and self.begin > 0

    @property
    def is_last(self) -> bool:
        """Whether the next token of the sequence can be sampled after this chunk."""
        return self.end == self.sequence.num_tokens

    @property
    def wants_all_logits(self) -> bool:
        """Whether log-probabilities of the prompt are requested and have not been reported yet."""
        return self.sequence.params.prompt_logprobs is not None and self.sequence.is_first_pass


def _hash_salt(salt: str) -> int:
    """Hashes with a secret key, so that no client can construct a salt that matches prompts of others."""
    digest = blake2b(salt.encode(errors="surrogatepass"), digest_size=8, key=_salt_key()).digest()
    return int.from_bytes(digest, "little", signed=True)


@cache
def _salt_key() -> bytes:
    return urandom(16)
