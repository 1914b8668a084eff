"""Tracks grammar and reasoning of each constrained sequence, and masks tokens that must not come next."""

import logging
from collections.abc import Callable, Iterator
from concurrent.futures import Executor
from contextlib import contextmanager
from pathlib import Path
from threading import Lock
from time import thread_time

import numpy as np
import torch
from llguidance import LLMatcher, LLTokenizer

from base.wording import one_line
from server.engine.sampling.grammar import Grammar, GrammarCompiler, GrammarError
from server.engine.sampling.grammar_trial import LONGEST_MASK_S, TOO_SLOW, GrammarTrials, TokenizerSource
from server.engine.sampling.reasoning import FoundMarker, ReasoningState
from server.engine.sequence import Sequence
from server.terms.types import Fault

logger = logging.getLogger(__name__)

_MOST_COPIED_CHARS = 1 << 26
"""The most characters in all sequences' copies of grammars together. Further sequences wait."""


class GuidedDecodingError(Exception):
    """A sequence left its grammar, or the grammar is invalid or too large. Only that request fails."""

    def __init__(self, message: str, fault: Fault = "request") -> None:
        super().__init__(message)
        self.fault = fault


class GuidedStates:
    """The grammars of an engine's sequences. Loads the tokenizer only when a first request needs one."""

    def __init__(
        self,
        *,
        tokenizer: TokenizerSource,
        executor: Executor,
        trial_executor: Executor,
        wake: Callable[[], None] = lambda: None,
    ) -> None:
        """
        Args:
            tokenizer: what `read_tokenizer` returns.
            executor: compiles grammars.
            trial_executor: tries and compiles grammars that may be harmful.
            wake: called after each compilation, because a sequence may be ready.
        """
        self._source = tokenizer
        self._tokenizer: LLTokenizer | None = None
        self._loading = Lock()
        self._trials = GrammarTrials(trial_executor, tokenizer)
        self._compiler = GrammarCompiler(executor, self._load_tokenizer, self._trials, wake)
        self._matchers: dict[str, LLMatcher] = {}
        """Request id -> matcher of the sequence, from its first token on."""
        self._num_copied_chars = 0

    def start(self, sequence: Sequence) -> None:
        """Begins to compile the sequence's grammar and to track its reasoning, if the parameters need it."""
        params = sequence.params
        needs_texts = params.guided is not None
        if params.reasoning is not None:
            needs_texts |= params.reasoning.has_text_markers
            sequence.reasoning = ReasoningState(params.reasoning, self._token_bytes if needs_texts else None)
        if needs_texts:
            sequence.grammar = self._compiler.acquire(params.guided)

    def is_ready(self, sequence: Sequence) -> bool:
        """Whether the compilation of the sequence's grammar has ended, with or without success."""
        return sequence.grammar is None or sequence.grammar.compiled.done()

    def has_room(self, grammar: Grammar) -> bool:
        """Whether there is memory for another copy of the grammar."""
        return not self._num_copied_chars or self._num_copied_chars + grammar.num_chars <= _MOST_COPIED_CHARS

    def admit(self, sequence: Sequence) -> None:
        """Reserves memory for a ready sequence's copy of its grammar. Does nothing if there is no grammar.

        Raises:
            GuidedDecodingError: the grammar does not compile, or llguidance cannot read the tokenizer.
        """
        if sequence.grammar is None:
            return
        try:
            sequence.grammar.compiled.result()
        except GrammarError as err:
            if sequence.params.guided is None:
                raise GuidedDecodingError(f"the thinking budget cannot be used: {err}") from err
            raise GuidedDecodingError(str(err), "constraint") from err
        self._num_copied_chars += sequence.grammar.num_chars
        sequence.has_grammar_copy = True

    def mask(self, sequence: Sequence, row: torch.Tensor) -> None:
        """Sets the logits of tokens that must not come next to minus infinity, in place."""
        if self._waits(sequence):
            return
        matcher = self._matcher(sequence)
        with _bounded(matcher):
            bits = np.frombuffer(matcher.compute_bitmask(), dtype=np.uint8)
        starts = [] if sequence.reasoning is None else sequence.reasoning.optional_starts
        kept = row[starts] if starts else None
        flags = np.unpackbits(bits, bitorder="little")[: row.shape[-1]]
        allowed = torch.from_numpy(flags).to(row.device)
        row[: allowed.shape[0]].masked_fill_(allowed == 0, float("-inf"))
        row[allowed.shape[0] :] = float("-inf")
        if kept is not None:
            row[starts] = kept

    def accept(self, sequence: Sequence, token_id: int) -> bool:
        """Advances reasoning and grammar by one token. Returns True if no token can follow."""
        did_wait, end = self._waits(sequence), None
        if sequence.reasoning is not None:
            end = sequence.reasoning.advance(token_id)
        if sequence.params.guided is None:
            return False
        matcher = self._matcher(sequence)
        if did_wait or self._waits(sequence):
            if end is not None:
                self._begin(matcher, end)
            return False
        with _bounded(matcher):
            matcher.consume_token(token_id)
        return bool(matcher.is_stopped())

    def drop(self, sequence: Sequence) -> None:
        self._matchers.pop(sequence.request_id, None)
        grammar, sequence.grammar = sequence.grammar, None
        if grammar is None:
            return
        if sequence.has_grammar_copy:
            self._num_copied_chars -= grammar.num_chars
        self._compiler.release(grammar)

    def _matcher(self, sequence: Sequence) -> LLMatcher:
        matcher = self._matchers.get(sequence.request_id)
        if matcher is None:
            assert sequence.grammar is not None
            matcher = self._matchers[sequence.request_id] = sequence.grammar.copy()
        return matcher

    def _waits(self, sequence: Sequence) -> bool:
        return sequence.reasoning is not None and sequence.reasoning.delays_grammar

    def _begin(self, matcher: LLMatcher, end: FoundMarker) -> None:
        """Advances the grammar by the beginning of the answer, if the reasoning's last token contains any.

        Ignores a beginning that the grammar does not allow, such as line breaks before the grammar's text.
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
        with self._loading:
            if self._tokenizer is None:
                self._tokenizer = self._source.load()
            return self._tokenizer

    def close(self) -> None:
        """Ends the process of trials, as the end of the engine process does."""
        self._trials.close()


@contextmanager
def _bounded(matcher: LLMatcher) -> Iterator[None]:
    """Raises GuidedDecodingError if the block's use fails, or takes longer than `LONGEST_MASK_S`."""
    begin_s = thread_time()
    yield
    if matcher.is_error():
        raise GuidedDecodingError(matcher.get_error())
    if thread_time() - begin_s > LONGEST_MASK_S:
        raise GuidedDecodingError(TOO_SLOW)


def read_tokenizer(folder: Path, *, vocab_size: int, eos_token_ids: tuple[int, ...]) -> TokenizerSource:
    """Reads the tokenizer's file, which may change later.

    Args:
        folder: the folder with the file.
        vocab_size: the number of logits.
        eos_token_ids: the tokens that end a text.
    """
    vocabulary = read_vocabulary(folder)
    return TokenizerSource(None if vocabulary is None else vocabulary.encode(), vocab_size, eos_token_ids)


def read_vocabulary(folder: Path) -> str | None:
    """The content of tokenizer.json, or what transformers makes of tokenizer.model, or else None."""
    usual, other = folder / "tokenizer.json", folder / "tokenizer.model"
    try:
        if usual.exists():
            return usual.read_text(encoding="utf-8")
        return _convert(folder) if other.exists() else None
    except (OSError, ValueError, RuntimeError) as err:
        logger.warning("requests with a grammar are rejected, because %s has no tokenizer: %s", folder, one_line(err))
        return None


def _convert(folder: Path) -> str:
    from transformers import AutoTokenizer  # noqa: PLC0415 - few models need it

    tokenizer = AutoTokenizer.from_pretrained(
        folder,
        mistral_format=False,
        trust_remote_code=False,  # without a value, transformers asks the terminal whether to run a model's code
        local_files_only=True,
    )
    return str(tokenizer.backend_tokenizer.to_str())
