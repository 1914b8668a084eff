"""Durations as people write them: `90`, `90s`, `10m`, `1h`."""

import re
from typing import Final

EXPECTED: Final = "a duration of at least 1 s such as 90s, 10m or 1h"

_DURATION: Final = re.compile(r"(\d{1,9}(?:\.\d{1,3})?)\s*([smhd]?)")
_FACTORS: Final = {"": 1, "s": 1, "m": 60, "h": 3600, "d": 86400}


def parse_duration(text: str) -> float:
    """Seconds; raises ValueError for another text, and for less than a second."""
    match = _DURATION.fullmatch(text.strip().lower())
    seconds = float(match[1]) * _FACTORS[match[2]] if match else 0.0
    if seconds < 1:
        raise ValueError(EXPECTED)
    return seconds


def spell_duration(seconds: float) -> str:
    """In the largest unit of which it is a whole number: `10m`."""
    for unit in ("d", "h", "m"):
        if seconds >= _FACTORS[unit] and seconds % _FACTORS[unit] == 0:
            return f"{seconds / _FACTORS[unit]:g}{unit}"
    return f"{seconds:g}s"
