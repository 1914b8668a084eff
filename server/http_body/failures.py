"""The error of a failed request, as a body before its response has begun, or as an event of a stream."""

import logging
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from dataclasses import dataclass

import msgspec
from msgspec import structs

from server import sse
from server.errors import CodedRequestError, EngineError, RequestError, UnsupportedApiError
from server.http_body.errors import ErrorDetails, ErrorResponse, error_response

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class FailureFormat:
    """How an API writes errors."""

    to_body: Callable[[ErrorResponse], msgspec.Struct]
    encode_event: Callable[[msgspec.Struct], bytes]
    end: bytes
    """The last event of every stream, failed or not."""

    def event(self, error: Exception) -> bytes:
        """An exception as an event of a stream."""
        return self.encode_event(self.to_body(describe_failure(error)))


OPENAI = FailureFormat(to_body=lambda response: response, encode_event=sse.encode_event, end=sse.DONE)


def describe_failure(error: Exception) -> ErrorResponse:
    """The error body of any exception; an unexpected one is logged, and its body gives no details."""
    if isinstance(error, UnsupportedApiError):
        body = error_response(error.message, type=error.type, code=error.status)
        return structs.replace(body, detail="Not Found")
    if isinstance(error, RequestError):
        body = error_response(error.message, type=error.type, code=error.status, param=error.param)
        if isinstance(error, CodedRequestError):
            body.error.details = ErrorDetails(error.error_code)
        return body
    if isinstance(error, EngineError):
        return error_response(str(error), type="InternalServerError", code=500)
    logger.error("a request failed unexpectedly", exc_info=error)
    return error_response("Internal server error", type="InternalServerError", code=500)


async def end_stream(
    events: AsyncGenerator[bytes, None], failures: FailureFormat = OPENAI
) -> AsyncGenerator[bytes, None]:
    """The stream followed by its end, if its API has one; an exception becomes an error event before it."""
    try:
        async with aclosing(events):
            async for event in events:
                yield event
    except Exception as err:  # noqa: BLE001
        yield failures.event(err)
    if failures.end:
        yield failures.end
