"""Sends requests to one server and retries them, on the event loop."""

import asyncio
import email.utils
import json
import random
import time
from dataclasses import dataclass
from datetime import UTC, datetime
from http import HTTPStatus
from typing import Final, Self

import aiohttp

from vllm_cli.batch.requests import BatchRequest, LinePlace
from vllm_cli.batch.results import Result, answered, lost, rejected
from vllm_cli.client.server import Server
from vllm_cli.client.server_address import ServerAddress
from vllm_cli.errors import ConnectionFailedError

_CONNECT_TIMEOUT_S: Final = 30.0

RETRIED: Final = frozenset({408, 425, 429, 502, 503, 504})
"""Statuses that are not caused by the request: a time-out, too many requests, a server that is not ready."""

MAX_SERVER_ERRORS: Final = 3
"""After this many answers with status 500, a request counts as failed, because it may be the cause."""

_FIRST_S: Final = 0.5
_MIN_S: Final = 0.05
_MAX_S: Final = 30.0
_MAX_RETRY_AFTER_S: Final = 600.0


def pause_s(attempt: int, retry_after: str | None) -> float:
    """Seconds until the next attempt, from a valid Retry-After, else from `attempt`, which counts from 0."""
    retry_after_s = _parse_retry_after(retry_after)
    if retry_after_s is not None:
        return min(max(retry_after_s, _MIN_S), _MAX_RETRY_AFTER_S)
    return min(_FIRST_S * 2.0 ** min(attempt, 10), _MAX_S) * random.uniform(0.5, 1)


def _parse_retry_after(text: str | None) -> float | None:
    """Reads seconds or a date (RFC 9110). None for anything else."""
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


class Sender:
    """Sends requests to one server. The pause before a retry delays all requests."""

    def __init__(self, server: Server, *, model: str | None, max_concurrency: int, retry_timeout_s: float) -> None:
        """`model` is sent with requests that name no model. If it is None, the server chooses."""
        self.num_retries = 0
        self._address = server.address
        self._model = model
        self._retry_timeout_s = retry_timeout_s
        self._resume_at_s = 0.0
        headers = {"Authorization": f"Bearer {server.api_key}"} if server.api_key else {}
        self._session = aiohttp.ClientSession(
            connector=_connector(server.address, max_concurrency),
            headers={**headers, "Content-Type": "application/json"},
            timeout=aiohttp.ClientTimeout(total=None, sock_connect=_CONNECT_TIMEOUT_S),
        )

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._session.close()

    async def send(self, request: BatchRequest, place: LinePlace) -> Result:
        """Returns the result after all retries.

        Raises:
            ConnectionFailedError: the server is gone or rejects the API key.
        """
        if request.rejection is not None:
            return rejected(place, request.rejection)
        tries = _Tries(time.monotonic() + self._retry_timeout_s)
        while True:
            await self._wait_for_pause()
            result = await self._try(request, place, tries)
            if result is not None:
                return result
            self.num_retries += 1

    async def _try(self, request: BatchRequest, place: LinePlace, tries: "_Tries") -> Result | None:
        """Sends the request once. Returns None if it must be sent again."""
        try:
            async with self._post(request, place) as response:
                content = await response.read()
        except aiohttp.ClientConnectorError as err:
            if self._may_try_again(tries, None):
                return None
            reason = (err.os_error.strerror or str(err)).lower()
            raise ConnectionFailedError(f"No server answers at {self._address} ({reason}).") from err
        except (aiohttp.ClientError, OSError) as err:
            if self._may_try_again(tries, None):
                return None
            return lost(place, "connection_error", f"The connection was lost during the answer ({type(err).__name__}).")
        if response.status == HTTPStatus.UNAUTHORIZED:
            raise ConnectionFailedError(f"The server at {self._address} answers 401: give a valid --api-key.")
        if tries.should_retry(response.status) and self._may_try_again(tries, response.headers.get("Retry-After")):
            return None
        return answered(place, response.status, content)

    def _may_try_again(self, tries: "_Tries", retry_after: str | None) -> bool:
        """Whether there is time for another attempt. If so, all requests wait for the pause."""
        duration_s = pause_s(tries.num_failed, retry_after)
        tries.num_failed += 1
        resume_at_s = time.monotonic() + duration_s
        if resume_at_s > tries.deadline_s:
            return False
        self._resume_at_s = max(self._resume_at_s, resume_at_s)
        return True

    def _post(self, request: BatchRequest, place: LinePlace) -> "aiohttp.client._RequestContextManager":
        body = request.body if self._model is None else {"model": self._model, **request.body}
        url = f"{_base_url(self._address)}{request.url}"
        headers = {"X-Request-Id": place.request_id}
        return self._session.post(url, data=json.dumps(body).encode(), headers=headers, allow_redirects=False)

    async def _wait_for_pause(self) -> None:
        while (left_s := self._resume_at_s - time.monotonic()) > 0:
            await asyncio.sleep(left_s)


@dataclass
class _Tries:
    """The attempts for one request."""

    deadline_s: float
    num_failed: int = 0
    num_server_errors: int = 0

    def should_retry(self, status: int) -> bool:
        """Whether something other than the request may have caused the status."""
        if status != HTTPStatus.INTERNAL_SERVER_ERROR:
            return status in RETRIED
        self.num_server_errors += 1
        return self.num_server_errors < MAX_SERVER_ERRORS


def _connector(address: ServerAddress, limit: int) -> aiohttp.BaseConnector:
    if address.uds is not None:
        return aiohttp.UnixConnector(address.uds, limit=limit)
    return aiohttp.TCPConnector(limit=limit, ssl=address.tls or True)


def _base_url(address: ServerAddress) -> str:
    return "http://localhost" if address.uds is not None else str(address)
