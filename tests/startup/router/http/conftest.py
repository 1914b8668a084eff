"""A router in the test's process, and a client."""

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path
from tempfile import TemporaryDirectory

import aiohttp
import pytest

from tests.startup.router.http.small_router import SmallRouter


@pytest.fixture
async def router() -> AsyncIterator[SmallRouter]:
    with TemporaryDirectory(prefix="r") as folder:
        async with AsyncExitStack() as stack:
            yield SmallRouter(Path(folder), stack)


@pytest.fixture
async def client() -> AsyncIterator[aiohttp.ClientSession]:
    async with aiohttp.ClientSession(auto_decompress=False) as session:
        yield session
