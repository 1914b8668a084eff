"""Ends a server on which no request has run for a while; its front starts another one at the next request.

No request is lost: the front stops passing connections on before the server looks for the last time, and
gets back the connections on which clients may send further requests.
"""

import asyncio
import logging
import os
import signal
import time
from collections.abc import Callable
from typing import Any, Final, Protocol

from startup.probes.app_request import ask_app
from startup.probes.front_link import FrontOffer
from startup.probes.serving_messages import LastAnswer, write_answers

logger = logging.getLogger(__name__)

_REPEATED_PATHS: Final = ("/metrics", "/v1/models", "/version", "/load")
"""The front repeats the last answers of these, as far as they need no key."""
_MAX_ANSWER_BYTES: Final = 4 << 20
_ARRIVAL_S: Final = 0.2
"""How long the first bytes of a connection that was passed on last may take to be read."""
_LONGEST_PART_S: Final = 10.0
"""How long the server waits for clients that have sent a part of a request; then they are cut off."""
_POLL_S: Final = 0.01
_RETRY_S: Final = 0.5


class LinkToFront(Protocol):
    """What a `startup.probes.probe_link.ProbeLink` does behind a front; described there."""

    async def pause(self) -> None: ...
    def resume(self) -> None: ...
    def give(self, fd: int, client: str) -> bool: ...
    def announce_stop(self, answers_fd: int) -> bool: ...


class IdleStop:
    """Watches one server; runs on its event loop from its readiness on."""

    def __init__(self, link: LinkToFront, http: Any, unused_s: Callable[[], float], offer: FrontOffer) -> None:
        """
        Args:
            link: to the front.
            http: uvicorn's server.
            unused_s: seconds since the last request ended, 0 while one runs, infinite without one.
            offer: of the front.
        """
        self._link = link
        self._http = http
        self._unused_s = unused_s
        self._idle_s = offer.idle_s
        self._begin_s = time.monotonic()

    async def run(self) -> None:
        """Returns once the server has been told to end."""
        while True:
            rest_s = self._idle_s - self._idle_for_s()
            if rest_s > 0:
                await asyncio.sleep(max(rest_s, _POLL_S))
            elif self._is_busy() or not await self._try_to_stop():
                await asyncio.sleep(_RETRY_S)
            else:
                return

    def _idle_for_s(self) -> float:
        return min(self._unused_s(), time.monotonic() - self._begin_s)

    async def _try_to_stop(self) -> bool:
        """False if a request has come; then connections may come again."""
        await self._link.pause()
        end_s = time.monotonic() + _ARRIVAL_S
        while self._is_busy() and self._idle_for_s() and time.monotonic() < end_s:
            await asyncio.sleep(_POLL_S)
        answers_fd = write_answers(await self._last_answers())
        try:
            is_idle = self._idle_for_s() >= self._idle_s and not self._is_busy()
            if not (is_idle and self._give_connections() and self._link.announce_stop(answers_fd)):
                self._link.resume()
                return False
        finally:
            os.close(answers_fd)
        logger.info("no request for %g s (--idle-stop): the model is stopped until the next one", self._idle_s)
        os.kill(os.getpid(), signal.SIGTERM)
        return True

    def _is_busy(self) -> bool:
        """Whether a connection may still become a request, or has bytes to send; not for ever."""
        if self._idle_for_s() > self._idle_s + _LONGEST_PART_S:
            return False
        return any(not _is_closing(each) and not _is_between_requests(each) for each in self._connections())

    def _connections(self) -> list[Any]:
        return list(self._http.server_state.connections)

    def _give_connections(self) -> bool:
        """Gives the front all connections on which a client may send another request."""
        for connection in filter(_is_between_requests, self._connections()):
            client = f"{connection.client[0]}:{connection.client[1]}" if connection.client else ""
            if not self._link.give(connection.transport.get_extra_info("socket").fileno(), client):
                return False
            connection.transport.abort()
        return True

    async def _last_answers(self) -> dict[str, LastAnswer]:
        found = {}
        for path in _REPEATED_PATHS:
            answer = await ask_app(self._http, path)
            if answer is not None and answer.status == 200 and len(answer.body) <= _MAX_ANSWER_BYTES:
                content_type = (answer.header(b"content-type") or b"application/json").decode("latin-1")
                found[path] = LastAnswer(content_type, answer.body)
        return found


def _is_between_requests(connection: Any) -> bool:
    """Whether nothing has come since the last answer: uvicorn's timer of idle connections runs."""
    is_idle = getattr(connection, "timeout_keep_alive_task", None) is not None
    return is_idle and not connection.transport.is_closing() and not _num_unsent_bytes(connection.transport)


def _is_closing(connection: Any) -> bool:
    transport = getattr(connection, "transport", None)
    return transport is None or (transport.is_closing() and not _num_unsent_bytes(transport))


def _num_unsent_bytes(transport: Any) -> int:
    """Of uvicorn's transport, or of a `LingeringTransport`."""
    unsent = getattr(transport, "num_unsent_bytes", None)
    return int(transport.get_write_buffer_size() if unsent is None else unsent)
