"""What all HTTP servers of this program share about requests: ids, paths, what is counted.

This module imports the standard library only.
"""

import re
from collections.abc import Container
from contextvars import ContextVar
from typing import Final
from urllib.parse import quote, unquote

_VALID = re.compile(r"[A-Za-z0-9._:/+=@~-]{1,128}")
REQUEST_ID: ContextVar[str | None] = ContextVar("request_id", default=None)
"""The id of the request that this task serves. None if it serves none. New tasks inherit the id."""

HTTP_BUCKETS: Final = (
    0.01,
    0.025,
    0.05,
    0.075,
    0.1,
    0.25,
    0.5,
    0.75,
    1,
    1.5,
    2,
    2.5,
    3,
    3.5,
    4,
    4.5,
    5,
    7.5,
    10,
    30,
    60,
)
"""Bounds in seconds, as in vLLM's `http_request_duration_highr_seconds`."""
_MOST_DECODED: Final = 4096
"""Characters of the longest text that is decoded. No name or path of the APIs is longer."""
CLIENT_GONE: Final = 499
"""The status that is counted if the client leaves before its response is complete."""


def is_valid_id(given: str) -> bool:
    """Whether an id from a client may be copied into headers and log lines."""
    return _VALID.fullmatch(given) is not None


def without_final_slash(path: str, known: Container[str]) -> str:
    """Removes the final slashes of a path if the rest is a known path, to which vLLM would redirect."""
    bare = path.rstrip("/")
    return bare if bare in known else path


def decode(text: str) -> str:
    """Decodes percent signs, unless the text is longer: 64 KiB of them hold the event loop for 20 ms."""
    return unquote(text) if "%" in text and len(text) <= _MOST_DECODED else text


def encode(path: str) -> str:
    """The path as the log shows it. `path` is what `decode` has returned."""
    return quote(path) if len(path) <= _MOST_DECODED else path


def query_value(query: str, name: str) -> str | None:
    """The last value of a parameter, as in vLLM. None if the query lacks the parameter."""
    values = re.findall(rf"(?:^|&){name}(?:=([^&]*))?(?![^&])", query)
    return decode(values[-1].replace("+", " ")) if values else None
