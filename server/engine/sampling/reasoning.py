"""Tracks a sequence's reasoning: when its grammar begins, and which tokens a used-up budget forces."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

from server.terms.types import ReasoningMarker, ReasoningRules

TokenBytes = Callable[[int], bytes]


class FoundMarker(NamedTuple):
    """A marker that a token of the output has completed."""

    marker: ReasoningMarker
    rest: bytes
    """The token's bytes after the marker. Not empty for a token such as `>{`."""


class ReasoningState:
    """The state of one sequence whose grammar waits for the reasoning's end, or whose reasoning is limited.

    The state advances with every token of the output. Preemption does not change it.
    """

    def __init__(self, rules: ReasoningRules, token_bytes: TokenBytes | None) -> None:
        """Without `token_bytes`, finds only markers that are a token of their own."""
        self._rules = rules
        self._starts = MarkerFinder(rules.starts, token_bytes)
        self._ends = MarkerFinder(rules.ends, token_bytes)
        self._is_open = rules.is_open
        self._num_spent = rules.num_spent_tokens
        self._num_forced: int | None = None
        """How many tokens of the forced end are in the output. None while no end is forced."""
        self.delays_grammar = rules.delays_grammar
        """Whether the grammar does not apply to the next token yet."""
        self._is_undecided = rules.is_optional
        self._check_budget()

    @property
    def forced_token_id(self) -> int | None:
        """The only token that may follow. None if other tokens may follow."""
        return None if self._num_forced is None else self._rules.forced_end[self._num_forced]

    @property
    def optional_starts(self) -> list[int]:
        """Tokens that may begin reasoning now, although the grammar excludes them."""
        if not self._is_undecided:
            return []
        return [marker.token_id for marker in self._rules.starts if marker.token_id is not None]

    def advance(self, token_id: int) -> FoundMarker | None:
        """Adds the output's next token. If this token ends the reasoning, returns the completed marker."""
        end, start = self._ends.add(token_id), self._starts.add(token_id)
        if end is not None:
            self._is_open = self.delays_grammar = False
        elif start is not None and not self._is_open:
            self._is_open, self._num_spent = True, 0
            self.delays_grammar |= self._is_undecided
        elif self._is_open:
            self._num_spent += 1
        self._is_undecided = False
        if self._num_forced is not None:
            self._num_forced += 1
            if self._num_forced == len(self._rules.forced_end):
                self._num_forced, self._is_open = None, False
        self._check_budget()
        return end

    def _check_budget(self) -> None:
        budget = self._rules.budget
        if budget is not None and self._is_open and self._num_forced is None and self._num_spent >= budget:
            self._num_forced = 0


class MarkerFinder:
    """Finds markers in the output, by token id if a marker has its own token, or else by its text."""

    def __init__(self, markers: Sequence[ReasoningMarker], token_bytes: TokenBytes | None) -> None:
        self._token_bytes = token_bytes
        self._by_id = {marker.token_id: marker for marker in markers if marker.token_id is not None}
        self._by_text = {marker.text.encode(): marker for marker in markers}
        self._num_kept = max((len(text) - 1 for text in self._by_text), default=0)
        self._tail = b""

    def add(self, token_id: int) -> FoundMarker | None:
        """Returns the marker that this token completes, or None if it completes no marker."""
        if token_id in self._by_id:
            self._tail = b""
            return FoundMarker(self._by_id[token_id], b"")
        if self._token_bytes is None or not self._by_text:
            return None
        seen = self._tail + self._token_bytes(token_id)
        for text, marker in self._by_text.items():
            _, found, rest = seen.partition(text)
            if found:
                self._tail = b""
                return FoundMarker(marker, rest)
        self._tail = seen[-self._num_kept :] if self._num_kept else b""
        return None
