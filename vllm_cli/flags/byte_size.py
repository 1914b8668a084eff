"""The type of flag values that are sizes in bytes."""

import re
from typing import Any, Final

import click

_FACTORS: Final[dict[str, int]] = {"": 1, "k": 1 << 10, "m": 1 << 20, "g": 1 << 30, "t": 1 << 40}
_DECIMAL_FACTORS: Final[dict[str, int]] = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12}
_SIZE: Final = re.compile(r"(\d+(?:\.\d+)?)\s*([kmgt]?)(i?)(b?)")


class ByteSize(click.ParamType):
    """`16MiB` and `16M` are 16 times 2**20 bytes, `16MB` is 16 million, `16777216` is bytes."""

    name = "size"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """Ignores case."""
        match = _SIZE.fullmatch(str(value).strip().lower())
        if not match or (match[3] and not match[2]):
            self.fail(f"{value!r} is not a size such as 16MiB, 16M or 16777216.", param, ctx)
        number, unit, binary, byte = match.groups()
        factors = _DECIMAL_FACTORS if byte and not binary else _FACTORS
        return round(float(number) * factors[unit])


def spell_size(num_bytes: int) -> str:
    """In the largest unit that divides the number: `16MiB`."""
    for unit, factor in reversed(_FACTORS.items()):
        if unit and num_bytes and num_bytes % factor == 0:
            return f"{num_bytes // factor}{unit.upper()}iB"
    return str(num_bytes)
