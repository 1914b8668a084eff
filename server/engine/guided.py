"""Tracks each constrained sequence's state in its grammar and its reasoning, and masks the other tokens."""

from pathlib import Path

import numpy as np
import torch
from llguidance import LLMatcher, LLTokenizer

from server.engine.grammar import build_grammar
from server.engine.reasoning import FoundMarker, ReasoningState
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
        """Compiles the sequence's grammar and starts to follow its reasoning, where it has them.

        Raises:
            GuidedDecodingError: the grammar does not compile, or the model has no tokenizer.json.
        """
        params = sequence.params
        try:
            if params.reasoning is not None:
                needs_texts = params.guided is not None or params.reasoning.has_text_markers
                if needs_texts:
                    self._load_tokenizer()
                sequence.reasoning = ReasoningState(params.reasoning, self._token_bytes if needs_texts else None)
            if params.guided is not None:
                matcher = LLMatcher(self._load_tokenizer(), build_grammar(params.guided))
                self._check(matcher)
                self._matchers[sequence.request_id] = matcher
        except (ValueError, OSError) as err:
            subject = "thinking budget" if params.guided is None else "grammar"
            raise GuidedDecodingError(f"the {subject} cannot be used: {err}") from err

    def mask(self, sequence: Sequence, row: torch.Tensor) -> None:
        """Sets the logits of tokens that may not follow to minus infinity, in place."""
        if self._waits(sequence):
            return
        matcher = self._matchers[sequence.request_id]
        bits = np.frombuffer(matcher.compute_bitmask(), dtype=np.uint8)
        self._check(matcher)
        starts = [] if sequence.reasoning is None else sequence.reasoning.optional_starts
        kept = row[starts] if starts else None
        allowed = torch.from_numpy(np.unpackbits(bits, bitorder="little")[: row.shape[-1]]).to(row.device)
        row[: allowed.shape[0]].masked_fill_(allowed == 0, float("-inf"))
        row[allowed.shape[0] :] = float("-inf")
        if kept is not None:
            row[starts] = kept

    def accept(self, sequence: Sequence, token_id: int) -> bool:
        """Advances reasoning and grammar by one token; True if no token can follow."""
        did_wait, end = self._waits(sequence), None
        if sequence.reasoning is not None:
            end = sequence.reasoning.advance(token_id)
        matcher = self._matchers.get(sequence.request_id)
        if matcher is None:
            return False
        if did_wait or self._waits(sequence):
            if end is not None:
                self._begin(matcher, end)
            return False
        matcher.consume_token(token_id)
        self._check(matcher)
        return bool(matcher.is_stopped())

    def drop(self, sequence: Sequence) -> None:
        """Drops the state of an ended sequence."""
        self._matchers.pop(sequence.request_id, None)

    def _waits(self, sequence: Sequence) -> bool:
        return sequence.reasoning is not None and sequence.reasoning.delays_grammar

    def _begin(self, matcher: LLMatcher, end: FoundMarker) -> None:
        """Consumes the beginning of the answer that came with the end of the reasoning.

        What the grammar does not allow, such as line breaks, precedes the grammar's text.
        """
        if end.marker.begins_answer and end.marker.token_id is not None:
            token_ids = [end.marker.token_id]
        else:
            begin = end.marker.text.encode() if end.marker.begins_answer else b""
            token_ids = self._load_tokenizer().tokenize_bytes(begin + end.rest)
        if token_ids and matcher.validate_tokens(token_ids) == len(token_ids):
            matcher.consume_tokens(token_ids)

    def _token_bytes(self, token_id: int) -> bytes:
        return bytes(self._load_tokenizer().decode_bytes([token_id]))

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
