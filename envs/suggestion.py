"""Suggests the replacement of an unknown word, or the most similar known word."""

from collections.abc import Iterable
from difflib import get_close_matches

from envs.replacements import REPLACEMENTS


def did_you_mean(word: str, choices: Iterable[str]) -> str:
    """` (did you mean 'x'?)`, or ` (removed: …)` for a former word. Empty if no choice is similar.

    If `--port 80` is a single word, as in lists of arguments, the advice is to write two words. Case is
    ignored, and so are the dashes before a flag's name, because they would make any two flags similar.
    """
    name = word.partition(" ")[0] if word.startswith("-") else word
    if (former := positive(name)) in REPLACEMENTS:
        return f" (removed: {REPLACEMENTS[former]})"
    by_folded = {_fold(choice): choice for choice in choices}
    if name != word and _fold(name) in by_folded:
        return f" (write {name} and its value as two words)"
    matches = get_close_matches(_fold(word), by_folded, n=1)
    return f" (did you mean {by_folded[matches[0]]!r}?)" if matches else ""


def positive(flag: str) -> str:
    """The name of the flag that `--no-x` negates. Other words are returned unchanged."""
    return flag.replace("--no-", "--", 1)


def former_form(flag: str) -> str:
    """`: …` with the current form of a flag's value, if the flag had another form. Empty for other flags."""
    text = REPLACEMENTS.get(f"{flag} VALUE")
    return f": {text}" if text else ""


def _fold(word: str) -> str:
    return word.lstrip("-").casefold()
