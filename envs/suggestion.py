"""Suggests the closest known word for a misspelt one; the only place that words such a suggestion."""

from collections.abc import Iterable
from difflib import get_close_matches


def did_you_mean(word: str, choices: Iterable[str]) -> str:
    """` (did you mean 'x'?)`; empty if no choice is similar.

    Ignores case, and the dashes before a flag's name, which make any two flags similar.
    """
    by_folded = {_fold(choice): choice for choice in choices}
    matches = get_close_matches(_fold(word), by_folded, n=1)
    return f" (did you mean {by_folded[matches[0]]!r}?)" if matches else ""


def _fold(word: str) -> str:
    return word.lstrip("-").casefold()
