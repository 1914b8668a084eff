"""Reads and writes JSON that a response can contain.

Python's own module also accepts NaN and infinities, which JSON does not have, and text with half of a
surrogate pair, which cannot be sent as UTF-8.
"""

import json
import math
from typing import Any

from base.json_depth import check_depth


def write_json(value: Any) -> str:
    """Returns the value as JSON. Escapes non-ASCII characters if a text has half of a surrogate pair.

    Raises:
        ValueError: the value holds NaN, an infinity or an integer of thousands of digits.
    """
    text = json.dumps(value, ensure_ascii=False, allow_nan=False)
    return text if is_unicode(text) else json.dumps(value)


def read_json(text: str) -> Any:
    """Returns the value of a JSON text. `write_json` can write every value that this function returns.

    Raises:
        ValueError: the text is not JSON, holds a number that is too large, or is nested too deeply.
    """
    check_depth(text)
    return _DECODER.decode(text)


def is_unicode(text: str) -> bool:
    """Whether the text can be encoded in UTF-8."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def is_nested_deeper(value: Any, levels: int) -> bool:
    """Whether objects and lists are nested more than `levels` deep. Deeper levels are not read."""
    layer = [value]
    for _ in range(levels):
        children = (node.values() if isinstance(node, dict) else node for node in layer)
        layer = [child for each in children for child in each if isinstance(child, dict | list)]
        if not layer:
            return False
    return True


def _finite(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise ValueError(text)
    return number


_DECODER = json.JSONDecoder(parse_float=_finite, parse_constant=_finite)
