"""Follows a sequence's reasoning: when its grammar begins, and which tokens a used-up budget forces."""

from collections.abc import Callable

from server.types import ReasoningMarker, ReasoningRules

TokenBytes = Callable[[int], bytes]


class ReasoningState:
    """One per sequence whose grammar waits for the end of the reasoning, or whose reasoning is limited.

    It advances with every token of the output, so it survives preemption.
    """

    def __init__(self, rules: ReasoningRules, token_bytes: TokenBytes) -> None:
        """`token_bytes` is called only if a marker consists of ordinary tokens."""
        self._rules = rules
        self._starts = MarkerMatcher(rules.starts, token_bytes)
        self._ends = MarkerMatcher(rules.ends, token_bytes)
        self._is_open = rules.is_open
        self._num_spent = rules.num_spent_tokens
        self._num_forced: int | None = None
        """How many tokens of the forced end the output has; None while nothing is forced."""
        self.delays_grammar = rules.delays_grammar
        """Whether the grammar does not apply to the next token."""
        self._check_budget()

    @property
    def forced_token_id(self) -> int | None:
        """The only token that may follow; None if the choice is free."""
        return None if self._num_forced is None else self._rules.forced_end[self._num_forced]

    def advance(self, token_id: int) -> bytes | None:
        """Adds the output's next token.

        Returns:
            The token's bytes that belong to the answer, if this token ended the reasoning.
        """
        rest, begin = self._ends.add(token_id), self._starts.add(token_id)
        if rest is not None:
            self._is_open = self.delays_grammar = False
        elif begin is not None:
            self._is_open, self._num_spent = True, 0
        elif self._is_open:
            self._num_spent += 1
        if self._num_forced is not None:
            self._num_forced += 1
            if self._num_forced == len(self._rules.forced_end):
                self._num_forced, self._is_open = None, False
        self._check_budget()
        return rest

    def _check_budget(self) -> None:
        budget = self._rules.budget
        if budget is not None and self._is_open and self._num_forced is None and self._num_spent >= budget:
            self._num_forced = 0


class MarkerMatcher:
    """Finds markers in the output: a marker's own token by its id, ordinary tokens by their text."""

    def __init__(self, markers: tuple[ReasoningMarker, ...], token_bytes: TokenBytes) -> None:
        self._token_bytes = token_bytes
        self._token_ids = {m.token_id for m in markers}
        self._texts = [m.text.encode() for m in markers if m.token_id is None]
        self._num_kept = max((len(text) - 1 for text in self._texts), default=0)
        self._tail = b""

    def add(self, token_id: int) -> bytes | None:
        """The bytes after a marker that this token completes, or None."""
        if token_id in self._token_ids:
            self._tail = b""
            return b""
        if not self._texts:
            return None
        seen = self._tail + self._token_bytes(token_id)
        for text in self._texts:
            _, marker, rest = seen.partition(text)
            if marker:
                self._tail = b""
                return rest
        self._tail = seen[-self._num_kept :] if self._num_kept else b""
        return None
