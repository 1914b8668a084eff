"""The HTTP client of valid requests in the soak test: reads answers to the end, or disconnects on purpose."""

import asyncio
from random import Random
from typing import Any, Final

import aiohttp
import msgspec

from tools.soak.ledger import Ledger, judge_answer
from vllm_cli.bench.load import open_session
from vllm_cli.bench.request_format import Destination

_KEEPALIVE_S: Final = 2.0
_STAY_S: Final = (0.001, 0.5)
"""Minimum and maximum time until a client of `disconnect` closes its connection."""


class SoakClient:
    """All well-behaved clients of a server; closes their keep-alive connections at its end.

    A keep-alive connection is not reused after 2 s, well before servers close it, so no request is lost.
    """

    def __init__(self, destination: Destination, ledger: Ledger, *, timeout_s: float) -> None:
        self.destination = destination
        self.ledger = ledger
        self.headers = destination.headers
        self._session = open_session(timeout_s, keepalive_s=_KEEPALIVE_S)

    async def __aenter__(self) -> "SoakClient":
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._session.close()

    async def post(self, kind: str, path: str, body: dict[str, Any]) -> int | None:
        """Sends a body and records how the request ended; returns the status, None without a response."""
        data = msgspec.json.encode({"model": self.destination.model} | body)
        return await self.send(kind, "POST", path, data=data)

    async def send(self, kind: str, method: str, path: str, **options: Any) -> int | None:
        """Sends any request of aiohttp, reads the answer and records its ending."""
        options.setdefault("headers", self.headers)
        status = None
        try:
            async with self._session.request(method, self.destination.base_url + path, **options) as response:
                status = response.status
                content = await response.read()
                is_stream = response.content_type == "text/event-stream"
        except (TimeoutError, aiohttp.ClientError) as error:
            self.ledger.record(kind, "lost", status=status, message=f"{type(error).__name__}: {error}")
        else:
            ending, message = judge_answer(status, content, is_stream=is_stream)
            self.ledger.record(kind, ending, status=status, message=message)
        return status

    async def disconnect(self, kind: str, path: str, body: dict[str, Any], random: Random) -> None:
        """Sends a body, and disconnects before or during the answer."""
        data = msgspec.json.encode({"model": self.destination.model} | body)
        stay_s = random.uniform(*_STAY_S)
        status = None
        try:
            async with (
                asyncio.timeout(stay_s),
                self._session.post(self.destination.base_url + path, data=data, headers=self.headers) as response,
            ):
                status = response.status
                await response.content.readany()
                response.close()
        except TimeoutError:
            pass
        except aiohttp.ClientError as error:
            self.ledger.record(kind, "lost", status=status, message=f"{type(error).__name__}: {error}")
            return
        self.ledger.record(kind, "left", status=status)
