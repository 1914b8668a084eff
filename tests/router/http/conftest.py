"""Fixtures: a router in the test's process, and a client."""

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import aiohttp
import pytest

from tests.router.http.small_router import SmallRouter
from tests.support.http_client import Answer


@pytest.fixture
async def router() -> AsyncIterator[SmallRouter]:
    with TemporaryDirectory(prefix="r") as folder:
        async with AsyncExitStack() as stack:
            yield SmallRouter(Path(folder), stack)


@pytest.fixture
async def client() -> AsyncIterator[aiohttp.ClientSession]:
    async with aiohttp.ClientSession(auto_decompress=False) as session:
        yield session


@pytest.fixture
def ask(router: SmallRouter, client: aiohttp.ClientSession) -> Callable[..., Awaitable[Answer]]:
    """Sends a request and reads the whole answer. The path is sent unchanged."""

    async def send(method: str, path: str, **options: Any) -> Answer:
        url = aiohttp.client.URL(router.url + path, encoded=True)
        async with client.request(method, url, **options) as response:
            headers = {name.lower(): value for name, value in response.headers.items()}
            return Answer(response.status, await response.read(), headers)

    return send
