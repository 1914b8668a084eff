"""Tracks each constrained sequence's state in its grammar and masks the tokens that may not follow."""

from pathlib import Path

import numpy as np
import torch
from llguidance import LLMatcher, LLTokenizer

from server.engine.grammar import build_grammar
from server.engine.sequence import Sequence


class GuidedDecodingError(Exception):
    """A sequence left its grammar, or the grammar is invalid or too large; fails that request only."""


class GuidedStates:
    """One per engine. Loads the tokenizer with the first constrained request, not at the start."""

    def __init__(self, *, tokenizer_path: Path, vocab_size: int, eos_token_ids: tuple[int, ...]) -> None:
        self._tokenizer_path = tokenizer_path
        self._vocab_size = vocab_size
        self._eos_token_ids = eos_token_ids
        self._tokenizer: LLTokenizer | None = None
        self._matchers: dict[str, LLMatcher] = {}

    def start(self, sequence: Sequence) -> None:
        """Compiles the sequence's grammar.

        Raises:
            GuidedDecodingError: the grammar does not compile, or the model has no tokenizer.json.
        """
        assert sequence.params.guided is not None
        try:
            matcher = LLMatcher(self._load_tokenizer(), build_grammar(sequence.params.guided))
        except (ValueError, OSError) as err:
            raise GuidedDecodingError(f"the grammar cannot be used: {err}") from err
        self._check(matcher)
        self._matchers[sequence.request_id] = matcher

    def mask(self, sequence: Sequence, row: torch.Tensor) -> None:
        """Sets the logits of tokens that the grammar excludes to minus infinity, in place."""
        matcher = self._matchers[sequence.request_id]
        bits = np.frombuffer(matcher.compute_bitmask(), dtype=np.uint8)
        self._check(matcher)
        allowed = torch.from_numpy(np.unpackbits(bits, bitorder="little")[: row.shape[-1]]).to(row.device)
        row[: allowed.shape[0]].masked_fill_(allowed == 0, float("-inf"))
        row[allowed.shape[0] :] = float("-inf")

    def accept(self, sequence: Sequence, token_id: int) -> bool:
        """Advances the state by one token; True if no token can follow."""
        matcher = self._matchers[sequence.request_id]
        matcher.consume_token(token_id)
        self._check(matcher)
        return bool(matcher.is_stopped())

    def drop(self, sequence: Sequence) -> None:
        """Drops the state of an ended sequence."""
        self._matchers.pop(sequence.request_id, None)

    def _load_tokenizer(self) -> LLTokenizer:
        if self._tokenizer is None:
            file = self._tokenizer_path / "tokenizer.json"
            self._tokenizer = LLTokenizer(
                file.read_text(encoding="utf-8"), n_vocab=self._vocab_size, eos_token=list(self._eos_token_ids) or None
            )
        return self._tokenizer

    def _check(self, matcher: LLMatcher) -> None:
        if matcher.is_error():
            raise GuidedDecodingError(matcher.get_error())
