"""A client of a soak that speaks HTTP as one should: it reads answers to the end, or leaves when it likes."""

import asyncio
from random import Random
from typing import Any, Final

import aiohttp
import msgspec

from tests.soak.judgement import judge_answer
from tests.soak.ledger import Ledger
from vllm_cli.bench.liveness.payloads import Destination
from vllm_cli.bench.load import open_session
from vllm_cli.bench.request_format import request_headers

_KEEPALIVE_S: Final = 2.0
_PATIENCE_S: Final = (0.001, 0.5)
"""How long clients that vanish stay, at least and at most."""


class SoakClient:
    """All clients of a server that behave; the connections that they keep are closed with it.

    A kept connection is not used again after 2 s, well before servers close it: no request meets with its end.
    """

    def __init__(self, destination: Destination, ledger: Ledger, *, timeout_s: float) -> None:
        self.destination = destination
        self.ledger = ledger
        self.headers = request_headers(destination.api_key)
        self._session = open_session(timeout_s, keepalive_s=_KEEPALIVE_S)

    async def __aenter__(self) -> "SoakClient":
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._session.close()

    async def post(self, kind: str, path: str, body: dict[str, Any]) -> int | None:
        """Ask, read the answer to its end, and enter how that went; the status, if there was one."""
        data = msgspec.json.encode({"model": self.destination.model} | body)
        return await self.send(kind, "POST", path, data=data)

    async def send(self, kind: str, method: str, path: str, **options: Any) -> int | None:
        """The same, for any request of aiohttp's."""
        options.setdefault("headers", self.headers)
        status = None
        try:
            async with self._session.request(method, self.destination.base_url + path, **options) as response:
                status = response.status
                content = await response.read()
                is_stream = response.content_type == "text/event-stream"
        except (TimeoutError, aiohttp.ClientError) as error:
            self.ledger.enter(kind, "lost", status=status, message=f"{type(error).__name__}: {error}")
        else:
            ending, message = judge_answer(status, content, is_stream=is_stream)
            self.ledger.enter(kind, ending, status=status, message=message)
        return status

    async def vanish(self, kind: str, path: str, body: dict[str, Any], random: Random) -> None:
        """Ask, and be gone before the answer is there, or in the midst of it."""
        data = msgspec.json.encode({"model": self.destination.model} | body)
        stay_s = random.uniform(*_PATIENCE_S)
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
            self.ledger.enter(kind, "lost", status=status, message=f"{type(error).__name__}: {error}")
            return
        self.ledger.enter(kind, "left", status=status)
