"""Suggests what to write if a word is unknown, or if a shell or a word processor has changed it."""

import re
from collections.abc import Iterable
from difflib import get_close_matches
from typing import Final

from envs.replacements import REPLACEMENTS

_TYPED: Final = str.maketrans(
    {
        **dict.fromkeys("\u201c\u201d\u201e\u201f\u2033\u00ab\u00bb", '"'),
        **dict.fromkeys("\u2018\u2019\u201a\u201b\u2032", "'"),
        **dict.fromkeys("\u2010\u2011\u2012\u2013\u2212\ufe63\uff0d", "-"),
        **dict.fromkeys("\u2014\u2015", "--"),
        **dict.fromkeys("\u00a0\u2007\u2009\u202f\u3000", " "),
    }
)
"""Quotes, dashes and blanks of word processors and web pages -> those of a command line."""
_INVISIBLE: Final = re.compile("[\x00-\x08\x0e-\x1f\x7f-\x9f\u00ad\u200b-\u200f\u202a-\u202e\u2060-\u206f\ufe0f\ufeff]")
"""Characters that no terminal shows: controls, zero-width ones, marks of the direction of writing."""
_STRANGE: Final = re.compile(r"[^!-~]")
"""A character that no name has: a blank, an invisible one, or one that is not ASCII."""
_NAMES: Final = {
    " ": "a blank",
    "\t": "a tab",
    "\n": "a line break",
    "\r": "a carriage return (as in files of Windows)",
}
_LONGEST_SHORT_NAME: Final = 3
_LONGEST_NAME: Final = 100


def did_you_mean(word: str, choices: Iterable[str]) -> str:
    """` (did you mean 'x'?)`, or ` (removed: …)` for a former word. Empty if no choice is similar.

    Names the character by which the word only seems to be a choice, such as a carriage return. If `--port 80`
    is a single word, as in lists of arguments, the advice is to write two words. Case is ignored, and so are
    the dashes before a flag's name, because they would make any two flags similar.
    """
    plain = plain_word(visible_text(word)).strip()
    name = re.split(r"\s", plain)[0] if plain.startswith("-") else plain
    if (former := positive(name)) in REPLACEMENTS:
        return f" (removed: {REPLACEMENTS[former]})"
    by_folded = {_fold(choice): choice for choice in choices}
    if name != plain and _fold(name) in by_folded:
        return f" (write {name} and its value as two words)"
    matches = get_close_matches(_fold(plain), by_folded, n=1)
    found = by_folded[matches[0]] if matches else ""
    if found and _only_seems_to_be(word, found):
        return f" (it has {_first_strange(word)}: write {found})"
    return f" (did you mean {found!r}?)" if found else ""


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


def visible_text(text: str) -> str:
    """The text without characters that no terminal shows. Line breaks and tabs stay."""
    return _INVISIBLE.sub("", text)


def hidden_character(text: str) -> str:
    """`: it has a carriage return at character 3`, why a value only looks right. Empty if it has none."""
    return f": it has {_first_hidden(text)}" if text and text != visible_text(text).strip() else ""


def changed_word(word: str) -> str | None:
    """`has …: write --x`, what a shell or a word processor has made of a word. None for any other word."""
    visible = visible_text(word).strip()
    plain = plain_word(visible).strip("\"' ")
    if re.search(r"\$[({]|{{", word):
        return "is the place of a value that was not filled in: write the value, or set the variable"
    if not plain.startswith("-"):
        if re.search(r"[{}]", word):
            return "is a part of JSON: put the whole JSON between single quotes"
        shown = visible.strip("\"' ")
        return f"has {_first_hidden(word)}: write {shown}" if shown and visible != word else None
    if not visible.startswith("-"):
        name = plain.lstrip("-")
        is_short = len(re.split("[ =]", name)[0]) <= _LONGEST_SHORT_NAME
        return f"has a dash or quotes that are not a shell's: write {'-' if is_short else '--'}{name}"
    flag = re.split(r"\s", plain)[0]
    if flag != plain:
        return f"is a flag and its value in one argument: write {' '.join(plain.split())} without quotes"
    return f"has {_first_strange(word)}: write {plain}" if plain != word else None


def _only_seems_to_be(word: str, choice: str) -> bool:
    """Whether the word is the choice but for strange characters, which stand in it or instead of others."""
    folded = word.casefold()
    pattern = "".join(".{0,2}" if _STRANGE.match(character) else re.escape(character) for character in folded)
    is_strange = _STRANGE.search(word) is not None and len(word) <= _LONGEST_NAME
    return is_strange and re.fullmatch(pattern, choice.casefold()) is not None


def _first_strange(word: str) -> str:
    """`a blank at character 3`, the first character that no name of a flag has."""
    found = _STRANGE.search(word)
    return _describe(word, found.start() if found else 0)


def _first_hidden(word: str) -> str:
    """The first invisible character of a word, or else the blank at its beginning or end."""
    found = _INVISIBLE.search(word)
    if found is not None:
        return _describe(word, found.start())
    return _describe(word, 0 if word[0].isspace() else len(word) - 1)


def _describe(word: str, place: int) -> str:
    import unicodedata  # noqa: PLC0415 - only for a message

    character = word[place]
    code = f"U+{ord(character):04X} ({unicodedata.name(character, 'a control character').lower()})"
    return f"{_NAMES.get(character, code)} at character {place + 1}"


def _fold(word: str) -> str:
    return word.lstrip("-").casefold()
