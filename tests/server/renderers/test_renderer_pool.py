"""The pool: the loop stays responsive, work waits and is cancelled, and closing stops all threads."""

import asyncio
import threading
import time

import pytest

from base.errors import ConfigError, RequestError
from base.machine.processors import usable_count
from server.config import ModelFiles, RendererConfig
from server.renderers.prompts import TextOptions
from server.renderers.registry import build_renderer


async def test_work_that_is_cancelled_while_it_waits_does_not_run(model_path):
    with build_renderer(ModelFiles(model_path, model_path), RendererConfig(num_workers=1)) as renderer:
        renderer.warm_up()
        pool = renderer.pools["text"]
        release = threading.Event()
        busy = asyncio.ensure_future(renderer.run_in_pool(release.wait, 60))
        ran: list[int] = []
        waiting = asyncio.ensure_future(renderer.run_in_pool(ran.append, 1))
        while pool.num_waiting != 1:
            await asyncio.sleep(0.001)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        release.set()
        assert await busy
        assert await renderer.run_in_pool(lambda: "done") == "done"
        assert (pool.num_waiting, ran) == (0, [])


async def test_waiting_times_are_reported(model_path):
    with build_renderer(ModelFiles(model_path, model_path), RendererConfig(num_workers=1)) as renderer:
        pool = renderer.pools["text"]
        waits: list[float] = []
        pool.subscribe_waits(waits.append)
        release = threading.Event()
        before_s = time.perf_counter()
        busy = asyncio.ensure_future(renderer.run_in_pool(release.wait, 60))
        waiting = asyncio.ensure_future(renderer.run_in_pool(time.perf_counter))
        while (pool.num_waiting, len(waits)) != (1, 1):  # the thread runs the first, and the second waits
            await asyncio.sleep(0.001)
        in_line_s = time.perf_counter()
        await asyncio.sleep(0.02)
        released_s = time.perf_counter()
        release.set()
        assert await busy
        begun_s = await waiting
        assert len(waits) == 2
        assert waits[0] <= in_line_s - before_s
        assert released_s - in_line_s <= waits[1] <= begun_s - before_s


@pytest.mark.parametrize("number", [-1, 0, 4 * usable_count() + 1 if usable_count() > 1 else 5])
def test_an_invalid_number_of_workers_is_rejected(number):
    with pytest.raises(ConfigError, match=rf"--renderer-num-workers must be from 1 to \d+: .*got {number}$"):
        RendererConfig(num_workers=number)


async def test_a_request_error_reaches_the_caller_through_the_pool(model_path):
    with (
        build_renderer(ModelFiles(model_path, model_path), RendererConfig(num_workers=1)) as renderer,
        pytest.raises(RequestError, match="Token id -1 "),
    ):
        await renderer.run_in_pool(renderer.render_text, [-1], TextOptions())


def test_closing_stops_the_threads(model_path):
    before = set(threading.enumerate())

    def names() -> list[str]:
        started = set(threading.enumerate()) - before
        return [thread.name for thread in started if thread.name.startswith("renderer")]

    with build_renderer(ModelFiles(model_path, model_path), RendererConfig(num_workers=2)) as renderer:
        asyncio.run(renderer.run_in_pool(print))
        assert len(names()) == 1
    assert names() == []
    with pytest.raises(RuntimeError):
        asyncio.run(renderer.run_in_pool(print))
