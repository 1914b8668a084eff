"""A browser runs the script of the status page.

The pages of many models show data that the test writes, or data of a router.
"""

import json
import time
from collections.abc import Iterator
from copy import deepcopy
from typing import Any

import pytest

from tests.router.router_process import RouterProcess, foreign
from tests.support.browser import Browser, PageServer, needs_browser
from tests.support.http_server import Request, serving
from tests.support.waiting import wait_until

pytestmark = [pytest.mark.slow, needs_browser]
_CARDS = (
    "Object.fromEntries([...document.querySelectorAll('.card')].map(c => [c.children[0].textContent, c.textContent]))"
)
_MARKUP = "<img src=x onerror=document.title='hacked'>\"'&amp;"
_NOW_S = 1_790_000_000.0
_MODEL = {
    "aliases": [], "engine": "embedded", "status": "stopped", "since": _NOW_S - 70, "for_s": 70.0, "memory_bytes": None,
    "size_bytes": 1 << 28, "num_running": 0, "num_waiting": 0, "num_starts": 0, "last_start_s": None, "reason": None,
    "pinned": False, "pid": None, "progress": None,
}  # fmt: skip
_STATUS: dict[str, Any] = {
    "status": "ready",
    "version": "1.2.3",
    "time_s": _NOW_S,
    "router": {
        "uptime_s": 3700.0, "memory_bytes": 40 << 20, "standby_bytes": 360 << 20, "memory_budget_bytes": 8 << 30,
        "needed_bytes": 1 << 30, "max_running": None, "needs_key": False,
    },
    "models": [
        _MODEL | {"id": "org/qwen", "aliases": ["chat"], "status": "ready", "memory_bytes": 1 << 30, "num_running": 2,
                  "num_waiting": 1, "num_starts": 3, "last_start_s": 0.42, "pinned": True, "pid": 7},
        _MODEL | {"id": "smol", "status": "starting", "num_waiting": 4,
                  "progress": {"phase": "load_weights", "fraction": 0.42, "remaining_s": 1.3}},
        _MODEL | {"id": _MARKUP, "status": "failed", "reason": f"exit code 3 {_MARKUP}", "aliases": [_MARKUP]},
    ],
    "starts": [
        {"model": "org/qwen", "begin_s": _NOW_S - 50, "took_s": 0.42, "outcome": "ready"},
        {"model": _MARKUP, "begin_s": _NOW_S - 20, "took_s": 1.5, "outcome": "failed"},
        {"model": "smol", "begin_s": _NOW_S - 1, "took_s": None, "outcome": "starting"},
    ],
}  # fmt: skip
_ROWS = "[...document.querySelectorAll('#models tbody tr')].map(r => [...r.cells].map(c => c.textContent))"
_BUTTONS = (
    "[...document.querySelectorAll('#models button')].filter(b => !b.hidden).map(b => b.getAttribute('aria-label'))"
)


async def test_the_page_shows_state_start_and_figures(start_server):
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
            assert {"api", "engine", "forkserver", "listening"} <= set(lanes)
            assert await browser.evaluate("document.querySelectorAll('#phases tbody tr').length") > 3
            assert await browser.evaluate("document.querySelector('#progress').hidden")
            assert browser.errors == []
            server.terminate()
            await browser.wait_for("document.querySelector('#state').textContent === 'unreachable'")


async def test_the_page_shows_a_stopped_model_and_its_next_start(start_tiny_server):
    arguments = ("--engine", "embedded", "--max-model-len", "256", "--idle-stop", "1s", "--standby", "off")
    with start_tiny_server(*arguments) as server:
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


class _Router(PageServer):
    def answer_post(self, request: Request) -> tuple[Any, ...]:
        time.sleep(0.5)  # the page is drawn again meanwhile
        if "qwen" not in request.path:
            return 503, {"error": {"message": f"no room {_MARKUP}"}}
        self.status["models"][0]["status"] = "stopped"
        return 200, {"status": "stopped"}


@pytest.fixture
def router() -> Iterator[_Router]:
    with serving(_Router(deepcopy(_STATUS))) as server:
        yield server


async def _open(browser: Browser, router: _Router) -> None:
    """Opens the page, and waits for its table of models."""
    await browser.open(router.url)
    await browser.wait_for("document.querySelectorAll('#models tbody tr').length === 3")


async def test_each_model_has_a_row_and_each_start_a_line(router):
    async with Browser() as browser:
        await _open(browser, router)
        qwen, smol, failed = await browser.evaluate(_ROWS)
        assert qwen[:2] == ["org/qwenchat · pinned · embedded", "ready"]
        assert qwen[2:8] == ["1 min 10 s", "1.00 GiB", "2", "1", "3", "420 ms"]
        assert smol[1] == "startingload weights, 1.3 s left"
        assert smol[4:8] == ["0", "4", "0", "–"]
        assert failed[0].startswith(f"{_MARKUP}{_MARKUP} · embeddedexit code 3 {_MARKUP}")
        assert await browser.evaluate("document.querySelectorAll('#starts svg rect').length") == 2
        assert await browser.evaluate("document.querySelector('h1').textContent") == "3 models"
        assert await browser.evaluate("document.querySelector('#start').hidden")
        assert await browser.evaluate("document.querySelectorAll('img').length") == 0
        assert await browser.evaluate("document.title") == "1 of 3 ready – vllm-cli"
        router.status["router"]["needs_key"] = True
        await browser.wait_for(f"({_BUTTONS}).length === 0")
        assert browser.errors == []


@pytest.mark.parametrize("width", [390, 768, 1280])
async def test_the_models_their_starts_and_the_toolbar_fit(router, width):
    async with Browser(width=width) as browser:
        await _open(browser, router)
        bar = "[...document.querySelectorAll('#chat-bar > :is(label, button:not([hidden]))')]"
        assert await browser.evaluate(f"{bar}.length") == 4
        tops = f"{bar}.map(part => part.getBoundingClientRect().top)"
        assert await browser.evaluate(f"Math.max(...{tops}) - Math.min(...{tops}) < 9") == (width > 390)
        await browser.evaluate("document.querySelector('#status-tab').click()")
        assert await browser.evaluate("document.documentElement.scrollWidth <= innerWidth")
        cells = f"{bar}.concat(...document.querySelectorAll('#models td, #models button:not([hidden]), #starts text'))"
        places = f"{cells}.map(cell => cell.getBoundingClientRect()).filter(place => place.width)"
        assert await browser.evaluate(f"{places}.every(place => place.left >= 0 && place.right <= innerWidth)")


async def test_buttons_load_and_unload_and_show_why_not(router):
    async with Browser() as browser:
        await _open(browser, router)
        assert await browser.evaluate(_BUTTONS) == ["unload org/qwen", "unload smol", f"load {_MARKUP}"]
        await browser.evaluate("document.querySelectorAll('#models button')[0].click()")
        await browser.wait_for("document.querySelectorAll('#models button')[0].disabled")
        await browser.wait_for("document.querySelector('#outcome').textContent === 'org/qwen: stopped'")
        await browser.wait_for(f"({_BUTTONS})[0] === 'load org/qwen'")
        await browser.evaluate("document.querySelectorAll('#models button')[4].click()")
        await browser.wait_for("document.querySelector('#outcome').textContent.includes('no room')")
        assert router.posts[0].path == "/v1/models/org/qwen/unload"
        assert "/load" in router.posts[1].path
        assert await browser.evaluate("document.querySelectorAll('img').length") == 0


async def test_buttons_put_a_model_to_sleep_and_wake_it(tmp_path):
    model = foreign("sleeps", sleep=[{"path": "/sleep"}], wake=[{"path": "/wake_up"}])
    with RouterProcess(tmp_path, {"a": model}) as router:
        async with Browser() as browser:
            await browser.open(f"{router.url}/")
            for verb, state, further in (
                ("load", "ready", ["unload a", "sleep a"]),
                ("sleep", "asleep", ["load a", "unload a"]),
                ("load", "ready", ["unload a", "sleep a"]),
            ):
                button = f"document.querySelector('#models button[aria-label=\"{verb} a\"]:enabled')"
                await browser.wait_for(f"{button} !== null")
                await browser.evaluate(f"{button}.click()")
                await browser.wait_for(f"document.querySelector('#outcome').textContent === 'a: {state}'")
                await browser.wait_for(f"({_ROWS})[0][1] === '{state}'")
                await browser.wait_for(f"JSON.stringify({_BUTTONS}) === '{json.dumps(further, separators=(',', ':'))}'")
            assert router.models()["a"]["num_starts"] == 1
            assert browser.errors == []
