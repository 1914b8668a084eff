"""Writes JSON that an answer can hold: a text with half of a surrogate pair cannot be sent as UTF-8."""

import json
from typing import Any


def write_json(value: Any) -> str:
    """The value as JSON, in characters; as ASCII with escapes if a text holds half of a surrogate pair."""
    text = json.dumps(value, ensure_ascii=False)
    return text if is_unicode(text) else json.dumps(value)


def is_unicode(text: str) -> bool:
    """Whether the text can be encoded."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
