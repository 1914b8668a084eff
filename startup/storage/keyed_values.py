"""Parses JSON values of flags that are written key by key: `--flag.a.b 8k`."""

import re
from typing import Any, Final

from base.json_depth import read_json

_FACTORS: Final = {"k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}
_SIZE: Final = re.compile(r"(\d+(?:\.\d+)?)([kKmMgGtT])")


def parse_size(text: str) -> int:
    """Parses a whole number with an optional suffix: `8k` is 8000, `8K` is 8192, `25.6k` is 25600.

    Raises:
        ValueError: the text is not a number, or has both a fraction and a binary suffix.
    """
    text = text.strip()
    if (match := _SIZE.fullmatch(text)) is None:
        return int(text)
    number, suffix = match.groups()
    return int(float(number) * _FACTORS[suffix]) if suffix.islower() else int(number) * _FACTORS[suffix]


def nest(keys: str, text: str) -> dict[str, Any]:
    """`nest("a.b", "1")` is `{"a": {"b": 1}}`, and `nest("a+", "1,2")` is `{"a": [1, 2]}`."""
    if keys.endswith("+"):
        keys = keys.removesuffix("+")
        nested: Any = [_parse(item) for item in text.split(",")]
    else:
        nested = _parse(text)
    for key in reversed(keys.split(".")):
        nested = {key: nested}
    return dict(nested)


def merge(into: dict[str, Any], update: dict[str, Any]) -> None:
    """Adds `update` to `into`. Extends JSON objects and lists, and replaces any other value."""
    for key, new in update.items():
        old = into.get(key)
        if isinstance(old, dict) and isinstance(new, dict):
            merge(old, new)
        elif isinstance(old, list) and isinstance(new, list):
            old.extend(new)
        else:
            into[key] = new


def _parse(text: str) -> Any:
    for read in (read_json, parse_size):
        try:
            return read(text)
        except ValueError:
            continue
    return text
