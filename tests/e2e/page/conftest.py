"""A chat whose answers the test writes."""

from collections.abc import AsyncIterator, Iterator

import pytest

from tests.e2e.page.written_chat import WrittenAnswers
from tests.support.browser import Browser
from tests.support.http_server import serving


@pytest.fixture
def written() -> Iterator[WrittenAnswers]:
    with serving(WrittenAnswers()) as server:
        yield server


@pytest.fixture
async def browser(written: WrittenAnswers) -> AsyncIterator[Browser]:
    """A browser that shows the chat of `written`."""
    async with Browser() as browser:
        await browser.open_chat(written.url)
        yield browser
