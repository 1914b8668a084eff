"""The pause before a retry: from the server's Retry-After, else growing."""

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
"""Statuses whose cause is not the request."""

MAX_SERVER_ERRORS: Final = 3
"""A request fails after this many 500s: it may be their cause, or the server is about to exit."""

_FIRST_S: Final = 0.5
_MIN_S: Final = 0.05
_MAX_S: Final = 30.0
_MAX_RETRY_AFTER_S: Final = 600.0


def pause_s(attempt: int, retry_after: str | None) -> float:
    """Seconds until the next attempt, from Retry-After if it is valid; `attempt` counts from 0."""
    retry_after_s = _parse_retry_after(retry_after)
    if retry_after_s is not None:
        return min(max(retry_after_s, _MIN_S), _MAX_RETRY_AFTER_S)
    return min(_FIRST_S * 2.0 ** min(attempt, 10), _MAX_S) * random.uniform(0.5, 1)


def _parse_retry_after(text: str | None) -> float | None:
    """Reads seconds or a date (RFC 9110); None if it is neither."""
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
