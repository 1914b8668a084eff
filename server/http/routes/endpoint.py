"""POST routes, which take JSON and answer with JSON or events. A disconnect cancels the request."""

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Generic, NamedTuple, TypeVar

import msgspec

from base.errors import RequestError
from base.http_requests import REQUEST_ID
from base.lifecycle import Lifecycle, StartView
from base.security.api_keys import ApiKeys
from server.http.transport.added_headers import read_request_id
from server.http.transport.http_request import ClientGoneError, RawHeaders, Request, find_header
from server.operation.admission import Admission, Availability, Lease, RequestContext, RunningRequests
from server.operation.models import Inference
from server.terms.http_body.request_body import RequestBody, RequestDecoder
from server.terms.http_body.response_body import (
    OPENAI,
    Answer,
    FailureFormat,
    Headers,
    failure_answer,
    json_answer,
    unavailable_answer,
)
from server.terms.limits import flag_of

T = TypeVar("T", bound=RequestBody)
ResponseBody = dict[str, Any] | bytes | AsyncGenerator[bytes, None]
"""An object to be encoded as JSON, encoded JSON, or events."""
Handler = Callable[[T, RequestContext], Awaitable[ResponseBody]]
_LARGE_BODY_BYTES = 32 << 10
"""Larger bodies are decoded on a thread. For this size, switching to a thread takes as long as decoding."""


@dataclass(frozen=True, kw_only=True)
class AppParts(Inference):
    """The objects of one server that routes use. Tests replace some of them with fakes."""

    lifecycle: Lifecycle
    start: StartView
    admission: Admission
    running: RunningRequests = field(default_factory=RunningRequests)
    api_keys: ApiKeys
    version: str

    @cached_property
    def availability(self) -> Availability:
        """Whether requests are accepted, or why not."""
        return Availability(self.lifecycle, self.start)

    def max_body_bytes(self, *, takes_embeds: bool) -> int:
        """The size limit of bodies. The model determines how much `prompt_embeds` may add to the limit."""
        embeds = self.renderer.prompts.embeds_limits if takes_embeds else None
        return self.admission.limits.max_body_bytes + (0 if embeds is None else embeds.max_base64_chars)


class Route(NamedTuple):
    """A path, with what answers its requests."""

    path: str
    """May end with `{NAME:path}`, which stands for the rest of a path."""
    handle: Callable[[Request], Awaitable[Answer | None]]
    """Returns the answer. If it returns None, it has sent the response itself."""
    methods: tuple[str, ...] = ("GET", "HEAD")


class JsonEndpoint(Generic[T]):
    """Answers the requests of one route."""

    def __init__(
        self,
        parts: AppParts,
        model: type[T],
        handle: Handler[T],
        *,
        takes_embeds: bool = False,
        failures: FailureFormat = OPENAI,
    ) -> None:
        """`model` is the type of the request. `takes_embeds`: whether embeddings may make its body larger."""
        self.model = model
        self._parts = parts
        self._decoder = RequestDecoder(model, parts.admission.limits)
        self._handle = handle
        self._takes_embeds = takes_embeds
        self._failures = failures

    async def __call__(self, request: Request) -> None:
        problem = self._parts.availability.problem
        if problem is not None:
            self._parts.running.note_rejection()
            await request.send(unavailable_answer(problem, self._failures))
            return
        try:
            max_bytes = self._parts.max_body_bytes(takes_embeds=self._takes_embeds)
            announced = read_announced_bytes(request.headers, max_bytes=max_bytes)
            with self._parts.admission.hold(announced) as lease, self._parts.running.hold():
                context = RequestContext(header_id=read_request_id(request.headers), lease=lease)
                try:
                    body = await read_body(request, lease, announced_bytes=announced, max_bytes=max_bytes)
                    await self._serve(body, context, request)
                except asyncio.CancelledError:
                    await self._report_cancellation(request)
        except ClientGoneError:
            return
        except RequestError as err:
            await request.send(failure_answer(err, self._failures))

    async def _serve(self, body: list[bytes], context: RequestContext, request: Request) -> None:
        if context.header_id is not None:
            REQUEST_ID.set(context.header_id)
        context.is_small = sum(map(len, body)) <= _LARGE_BODY_BYTES
        request.cancel_if_gone()
        try:
            await self._respond(body, context, request)
        finally:
            if context.held:
                self._parts.renderer.pools.submit(context.held.clear)

    async def _report_cancellation(self, request: Request) -> None:
        """Sends a 503 for a request that the drain has cancelled, if its response has not begun."""
        problem = self._parts.availability.problem
        if problem is None or not self._parts.running.is_cancelled:
            raise asyncio.CancelledError
        if request.status is None:
            await request.send(unavailable_answer(problem, self._failures))

    async def _respond(self, body: list[bytes], context: RequestContext, request: Request) -> None:
        def headers() -> Headers:
            timing = context.times.server_timing
            return ((b"server-timing", timing.encode()),) if timing else ()

        try:
            response = await self._handle_body(body, context)
        except Exception as err:  # noqa: BLE001
            await request.send(failure_answer(err, self._failures))
            return
        finally:
            if context.times.render_s is not None:
                self._parts.metrics.render_time.observe(context.times.render_s)
        if isinstance(response, dict) and not context.is_small:
            response = await self._parts.renderer.pools.run(msgspec.json.encode, response)
        if isinstance(response, dict | bytes):
            await request.send(json_answer(response, headers=headers()))
        else:
            await request.stream(response, headers)

    async def _handle_body(self, body: list[bytes], context: RequestContext) -> ResponseBody:
        request = await self._parts.renderer.pools.run_unless(context.is_small, self._decode, body)
        context.hold(request)
        context.lease.widen(request.num_sequences)
        return await self._handle(request, context)

    def _decode(self, parts: list[bytes]) -> T:
        body = b"".join(parts)
        parts.clear()  # the body's parts would stay in memory until the response is complete
        return self._decoder.decode(body)


def read_announced_bytes(headers: RawHeaders, *, max_bytes: int) -> int:
    """Returns the Content-Length, or 0 if the header is missing. Called before the body is read.

    Raises:
        RequestError: the body is too large, compressed, or not declared as JSON.
    """
    encoding = find_header(headers, b"content-encoding")
    if encoding is not None and encoding.strip().lower() not in ("", "identity"):
        raise RequestError(
            f"Content-Encoding '{encoding}' is not supported: send the body as it is.",
            status=415,
            type="UnsupportedMediaTypeError",
        )
    media_type = find_header(headers, b"content-type") or ""
    if media_type.partition(";")[0].strip().lower() != "application/json":
        raise RequestError(f"Unsupported media type '{media_type}': only 'application/json' is allowed.")
    announced = int(find_header(headers, b"content-length") or 0)
    if announced > max_bytes:
        raise _too_large(max_bytes, f", and {announced} are announced")
    return announced


async def read_body(request: Request, lease: Lease, *, announced_bytes: int, max_bytes: int) -> list[bytes]:
    """Reads the body. Returns the parts as they arrived, because joining many megabytes takes time.

    Raises:
        RequestError: the body is too large, or exceeds the admission limits.
        ClientGoneError: the client disconnected before the end of the body.
    """
    parts: list[bytes] = []
    size = 0
    while further := await request.read():
        parts += further
        num_bytes = sum(map(len, further))
        size += num_bytes
        if size > announced_bytes:  # a chunked body announces no length
            if size > max_bytes:
                raise _too_large(max_bytes)
            lease.add_bytes(num_bytes)
    return parts


def _too_large(max_bytes: int, announced: str = "") -> RequestError:
    message = f"The request body is larger than {max_bytes} bytes{announced} ({flag_of('max_body_bytes')})."
    return RequestError(message, status=413, type="RequestEntityTooLargeError")
