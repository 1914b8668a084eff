"""When to ask again: as the server says, or after growing pauses."""

import email.utils
import random
from datetime import UTC, datetime
from http import HTTPStatus
from typing import Final

RETRIED: Final = frozenset(
    {
        HTTPStatus.REQUEST_TIMEOUT,
        HTTPStatus.TOO_EARLY,
        HTTPStatus.TOO_MANY_REQUESTS,
        HTTPStatus.BAD_GATEWAY,
        HTTPStatus.SERVICE_UNAVAILABLE,
        HTTPStatus.GATEWAY_TIMEOUT,
    }
)
"""Statuses that say nothing about the request."""

MAX_SERVER_ERRORS: Final = 3
"""So often a request may be answered 500: the server may be ending, or fail on this very request."""

_FIRST_S: Final = 0.5
_SHORTEST_S: Final = 0.05
_LONGEST_S: Final = 30.0
_LONGEST_ASKED_S: Final = 600.0


def pause_s(attempt: int, retry_after: str | None) -> float:
    """Seconds until the next attempt, the first of which is number 0: what Retry-After says, if it says anything."""
    asked_s = _parse_retry_after(retry_after)
    if asked_s is not None:
        return min(max(asked_s, _SHORTEST_S), _LONGEST_ASKED_S)
    return min(_FIRST_S * 2.0 ** min(attempt, 10), _LONGEST_S) * random.uniform(0.5, 1)


def _parse_retry_after(text: str | None) -> float | None:
    """Seconds or a date (RFC 9110), None where it is neither."""
    if text is None:
        return None
    if text.strip().isdigit():
        return float(text)
    try:
        moment = email.utils.parsedate_to_datetime(text)
    except ValueError:
        return None
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=UTC)
    return max((moment - datetime.now(UTC)).total_seconds(), 0.0)
