"""The error body of a failed request, before its response has begun or as an event of a stream."""

import logging
from collections.abc import AsyncGenerator
from contextlib import aclosing

from server import sse
from server.errors import EngineError, RequestError
from server.protocol.errors import ErrorResponse, error_response

logger = logging.getLogger(__name__)


def describe_failure(error: Exception) -> ErrorResponse:
    """The error body of any exception; an unexpected one is logged, and its body gives no details."""
    if isinstance(error, RequestError):
        return error_response(error.message, type=error.type, code=error.status, param=error.param)
    if isinstance(error, EngineError):
        return error_response(str(error), type="InternalServerError", code=500)
    logger.error("a request failed unexpectedly", exc_info=error)
    return error_response("Internal server error", type="InternalServerError", code=500)


async def end_with_done(events: AsyncGenerator[bytes, None]) -> AsyncGenerator[bytes, None]:
    """The stream followed by [DONE]; an exception becomes an error event before it."""
    try:
        async with aclosing(events):
            async for event in events:
                yield event
    except Exception as err:  # noqa: BLE001
        yield sse.encode_event(describe_failure(err))
    yield sse.DONE
