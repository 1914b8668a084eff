"""Suggests the closest known word for a misspelt one."""

from collections.abc import Iterable
from difflib import get_close_matches


def closest(word: str, choices: Iterable[str]) -> str | None:
    """The choice most similar to `word`, if any is similar; ignores case."""
    by_folded = {choice.casefold(): choice for choice in choices}
    matches = get_close_matches(word.casefold(), by_folded, n=1)
    return by_folded[matches[0]] if matches else None


def did_you_mean(word: str, choices: Iterable[str]) -> str:
    """` (did you mean 'x'?)`; empty if no choice is similar."""
    match = closest(word, choices)
    return f" (did you mean {match!r}?)" if match else ""
