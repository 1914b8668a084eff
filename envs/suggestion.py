"""Suggests what to write if a word is unknown, or if a shell or a word processor has changed it."""

import re
from collections.abc import Iterable
from difflib import get_close_matches
from typing import Final

from envs.replacements import REPLACEMENTS

_TYPED: Final = str.maketrans({
    **dict.fromkeys("\u201c\u201d\u201e\u201f\u2033\u00ab\u00bb", '"'),
    **dict.fromkeys("\u2018\u2019\u201a\u201b\u2032", "'"),
    **dict.fromkeys("\u2010\u2011\u2012\u2013\u2212\ufe63\uff0d", "-"), **dict.fromkeys("\u2014\u2015", "--"),
    **dict.fromkeys("\u00a0\u2007\u2009\u202f\u3000", " "), **dict.fromkeys("\u200b\u2060\ufeff", ""),
})  # fmt: skip
"""Quotes, dashes and blanks of word processors and web pages -> those of a command line."""
_LONGEST_SHORT_NAME: Final = 3


def did_you_mean(word: str, choices: Iterable[str]) -> str:
    """` (did you mean 'x'?)`, or ` (removed: …)` for a former word. Empty if no choice is similar.

    If `--port 80` is a single word, as in lists of arguments, the advice is to write two words. Case is
    ignored, and so are the dashes before a flag's name, because they would make any two flags similar.
    """
    name = plain_word(word).partition(" ")[0] if word.startswith("-") else word
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


def plain_word(word: str) -> str:
    """The word with the quotes, dashes and blanks of a command line instead of those of a word processor."""
    return word.translate(_TYPED)


def changed_word(word: str) -> str | None:
    """`has …: write --x`, what a shell or a word processor has made of a flag or of JSON. Else None."""
    plain = plain_word(word).strip("\"' ")
    if re.search(r"\$[({]|{{", word):
        return "is the place of a value that was not filled in: write the value, or set the variable"
    if not plain.startswith("-"):
        return "is a part of JSON: put the whole JSON between single quotes" if re.search(r"[{}]", word) else None
    if not word.startswith("-"):
        name = plain.lstrip("-")
        is_short = len(re.split("[ =]", name)[0]) <= _LONGEST_SHORT_NAME
        return f"has a dash or quotes that are not a shell's: write {'-' if is_short else '--'}{name}"
    return f"is a flag and its value in one word: write {plain} without quotes" if " " in plain else None


def _fold(word: str) -> str:
    return word.lstrip("-").casefold()
