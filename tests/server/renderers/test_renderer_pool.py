"""The pool: the loop stays responsive, work waits and is cancelled, and closing stops all threads."""

import asyncio
import threading
import time
from concurrent.futures import Executor
from pathlib import Path
from typing import Any

import pytest

from server.config import ModelFiles, RendererConfig
from server.errors import ConfigError, RequestError
from server.machine.processors import usable_count
from server.renderers.base import _is_small
from server.renderers.pool import make_async
from server.renderers.prompts import ChatOptions, TextOptions
from server.renderers.registry import build_renderer


@pytest.mark.alone
async def test_small_prompts_render_on_the_loop_within_its_share(model_path: Path) -> None:
    """A hundred concurrent short prompts must not block the loop for longer than its share."""
    with build_renderer(ModelFiles(model_path, model_path), RendererConfig()) as renderer:
        renderer.warm_up()
        waits: list[float] = []
        renderer.pools["text"].subscribe_waits(waits.append)
        await renderer.render_chat_async([{"role": "user", "content": "hello"}], ChatOptions())
        assert waits == []
        text = "The quick brown fox jumps. " * 36
        await asyncio.gather(*(renderer.render_text_async(f"{i} {text}", TextOptions()) for i in range(100)))
        assert 0 < len(waits) < 100


async def test_work_that_is_cancelled_while_it_waits_does_not_run(model_path: Path) -> None:
    with build_renderer(ModelFiles(model_path, model_path), RendererConfig()) as renderer:
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


async def test_waiting_times_are_reported(model_path: Path) -> None:
    with build_renderer(ModelFiles(model_path, model_path), RendererConfig()) as renderer:
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
def test_an_invalid_number_of_workers_is_rejected(number: int) -> None:
    with pytest.raises(ConfigError, match=rf"--renderer-num-workers must be from 1 to \d+: .*got {number}$"):
        RendererConfig(num_workers=number)


async def test_make_async_passes_arguments_results_and_errors(inline_executor: Executor) -> None:
    def divide(a: int, *, by: int) -> float:
        """Divides."""
        return a / by

    divide_async = make_async(divide, inline_executor)
    assert divide_async.__name__ == "divide"
    assert await divide_async(6, by=3) == 2
    with pytest.raises(ZeroDivisionError):
        await divide_async(1, by=0)


async def test_a_request_error_reaches_the_caller_through_the_pool(model_path: Path) -> None:
    with (
        build_renderer(ModelFiles(model_path, model_path), RendererConfig()) as renderer,
        pytest.raises(RequestError, match="Token id -1 "),
    ):
        await renderer.render_text_async([-1], TextOptions())


def test_closing_stops_the_threads(model_path: Path) -> None:
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


@pytest.mark.parametrize(
    ("message", "variables", "is_small"),
    [
        ({"name": "Ann", "reasoning": "a" * 900}, {"enable_thinking": True}, True),
        ({"reasoning": "a" * 2000}, {}, False),
        ({"tool_calls": [{"function": {"name": "f", "arguments": "a" * 2000}}]}, {}, False),
        ({"tool_calls": [{}] * 2000}, {}, False),
        ({}, {"a" * 2000: 1}, False),
        ({}, {"a": [{"b": 1}] * 500}, False),
    ],
    ids=["short", "reasoning", "arguments", "calls", "name of a variable", "variable"],
)
def test_all_parts_of_a_conversation_count_as_its_size(
    message: dict[str, Any], variables: dict[str, Any], is_small: bool
) -> None:
    messages = [{"role": "assistant", "content": "", **message}]
    assert _is_small(messages, ChatOptions(chat_template_kwargs=variables)) is is_small
