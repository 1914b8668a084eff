"""Compares the character encodings that two environments select; the interpreter chooses its own once."""

from collections.abc import Mapping
from typing import Final

LOCALE_NAMES: Final = frozenset({"LANG", "LANGUAGE"} | {f"LC_{name}" for name in (
    "ADDRESS", "ALL", "COLLATE", "CTYPE", "IDENTIFICATION", "MEASUREMENT", "MESSAGES", "MONETARY", "NAME", "NUMERIC",
    "PAPER", "TELEPHONE", "TIME",
)})  # fmt: skip
"""At its start, Python sets only LC_CTYPE, which a fork can repeat; the others are read at each use."""

_UTF_8: Final = ("utf-8", "utf8")


def why_other_encoding(before: Mapping[str, str], after: Mapping[str, str]) -> str | None:
    """A reason in words if the encoding may differ; None for equal locales and for two in UTF-8."""
    old, new = _character_locale(before), _character_locale(after)
    if old == new or (_is_utf_8(old) and _is_utf_8(new)):
        return None
    return "the locale's character encoding differs, which the interpreter reads at its start"


def _character_locale(environment: Mapping[str, str]) -> str:
    """The value of LC_CTYPE, in the C library's order of variables."""
    return next((value for name in ("LC_ALL", "LC_CTYPE", "LANG") if (value := environment.get(name))), "")


def _is_utf_8(locale: str) -> bool:
    return locale.partition("@")[0].lower().endswith(_UTF_8)
