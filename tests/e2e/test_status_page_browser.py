"""The status page in a real browser: its script runs and shows the server's state."""

import pytest

from tests.e2e.browser import EXECUTABLE, Browser
from tests.waiting import wait_until

pytestmark = [pytest.mark.slow, pytest.mark.skipif(EXECUTABLE is None, reason="there is no chromium")]

_CARDS = (
    "Object.fromEntries([...document.querySelectorAll('.card')].map(c => [c.children[0].textContent, c.textContent]))"
)


async def test_the_page_shows_state_start_and_figures(start_server, tmp_path):
    with start_server(wait=False) as server:
        async with Browser() as browser:
            wait_until(server.health)  # 503: the responder answers
            await browser.open(f"{server.url}/")
            await browser.wait_for("document.querySelector('#timeline svg rect') !== null")
            await browser.wait_for("document.querySelector('#state').textContent === 'ready'")
            with server.openai() as client:
                client.completions.create(model="smol", prompt="a", max_tokens=5, extra_body={"ignore_eos": True})
            await browser.wait_for(f"({_CARDS})['Output tokens/s']?.includes('5 in all')")
            assert await browser.evaluate("document.querySelector('h1').textContent") == "smol"
            lanes = await browser.evaluate("[...document.querySelectorAll('#timeline text')].map(t => t.textContent)")
            assert {"waited for", "api", "engine", "forkserver", "listening"} <= set(lanes)
            assert await browser.evaluate("document.querySelectorAll('#phases tbody tr').length") > 3
            assert await browser.evaluate("document.querySelector('#progress').hidden")
            assert browser.errors == []
            await browser.take_screenshot(tmp_path / "page.png")
            assert (tmp_path / "page.png").stat().st_size > 10_000
            server.terminate()
            await browser.wait_for("document.querySelector('#state').textContent === 'unreachable'")


async def test_the_page_shows_a_stopped_model_and_its_next_start(start_tiny_server):
    words = ("--engine", "embedded", "--max-model-len", "256", "--idle-stop", "1s", "--idle-warm", "off")
    with start_tiny_server(*words) as server:
        async with Browser() as browser:
            await browser.open(f"{server.url}/")
            await browser.wait_for("document.querySelector('#state').textContent === 'stopped'")
            assert not await browser.evaluate("document.querySelector('#models').hidden")
            assert await browser.evaluate("document.querySelector('#models button').textContent") == "load"
            with server.openai() as client:
                client.completions.create(model="smol", prompt="a", max_tokens=2)
            await browser.wait_for("document.querySelector('#models').hidden")  # the page of its server
            await browser.wait_for("document.querySelector('#state').textContent === 'stopped'")
            assert browser.errors == []
