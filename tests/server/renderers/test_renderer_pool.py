"""The pool: the loop stays responsive, threads do not share a tokenizer, and closing stops all threads."""

import asyncio
import threading
import time
from collections.abc import Callable
from concurrent.futures import Executor, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from server.config import ModelFiles, RendererConfig
from server.errors import ConfigError, RequestError
from server.machine.cpus import usable_count
from server.renderers.base import _is_small
from server.renderers.hf import HfRenderer
from server.renderers.pool import make_async
from server.renderers.prompts import ChatOptions, TextOptions
from server.renderers.registry import build_renderer
from tests.server.renderers.loop_turns import BLOCKED_TURNS, FREE_TURNS, count_turns
from tests.server.renderers.thread_imports import run_watched


def conversation(i: int) -> list[dict[str, Any]]:
    return [{"role": "user", "content": f"{i} " + "What is the capital of France? 😀 " * (i % 40)}]


@pytest.mark.thorough
def test_many_threads_share_one_renderer(model_path: Path) -> None:
    """Truncation changes a tokenizer's state, so two threads with one copy fail or mix up settings."""
    settings = RendererConfig(num_workers=4)
    with build_renderer(ModelFiles(model_path, model_path), settings) as renderer:
        plain = TextOptions()
        expected = [renderer.render_text(conversation(i)[0]["content"], plain).token_ids for i in range(40)]
        chats = [renderer.render_chat(conversation(i), ChatOptions()) for i in range(40)]

        async def check(i: int) -> None:
            text = conversation(i)[0]["content"]
            short = TextOptions(truncate_prompt_tokens=3 + i)
            results = await asyncio.gather(
                renderer.render_text_async(text, plain),
                renderer.render_text_async(text, short),
                renderer.render_chat_async(conversation(i), ChatOptions()),
                renderer.detokenize_async(expected[i]),
                renderer.encode_words_async(["Paris", f"word{i}"]),
            )
            assert results[0].token_ids == expected[i]
            assert results[1].token_ids == expected[i][-(3 + i) :]
            assert results[2] == chats[i]
            assert results[3] == text

        def client(first: int) -> None:
            for i in range(16):
                asyncio.run(check((first + i) % 40))

        with ThreadPoolExecutor(32) as clients:
            list(clients.map(client, range(32)))


LARGE = [{"role": "user", "content": "The quick brown fox jumps over the lazy dog. " * 25_000}]


@pytest.mark.alone
async def test_the_loop_turns_while_a_large_prompt_is_rendered(model_path: Path) -> None:
    with build_renderer(ModelFiles(model_path, model_path), RendererConfig()) as renderer:
        renderer.warm_up()
        assert await count_turns(renderer.render_chat_async(LARGE, ChatOptions())) > FREE_TURNS


@pytest.mark.alone
async def test_the_inline_executor_blocks_the_loop(model_path: Path, build_inline: Callable[..., HfRenderer]) -> None:
    """Shows that the test above would fail if the work ran on the loop."""
    with build_inline(model_path) as renderer:
        renderer.warm_up()
        assert await count_turns(renderer.render_chat_async(LARGE, ChatOptions())) <= BLOCKED_TURNS


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


def test_each_thread_has_a_tokenizer_after_the_warm_up(model_path: Path) -> None:
    with build_renderer(ModelFiles(model_path, model_path), RendererConfig(num_workers=4)) as renderer:
        assert isinstance(renderer, HfRenderer)
        renderer.warm_up()
        seen = {id(renderer._hf.for_this_thread)}
        renderer.pools["text"].run_in_each_thread(lambda: seen.add(id(renderer._hf.for_this_thread)))
        assert len(seen) == 5


@pytest.mark.parametrize("number", [-1, 0, 4 * usable_count() + 1 if usable_count() > 1 else 5])
def test_an_invalid_number_of_workers_is_rejected(number: int) -> None:
    with pytest.raises(ConfigError, match=rf"--renderer-num-workers must be from 1 to \d+: .*got {number}$"):
        RendererConfig(num_workers=number)


async def test_the_work_runs_in_the_pool_and_not_on_the_loop() -> None:
    with ThreadPoolExecutor(1, thread_name_prefix="pool") as executor:
        name = await make_async(lambda: threading.current_thread().name, executor)()
    assert name.startswith("pool")


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
        renderer.warm_up()
        assert len(names()) == 2
    assert names() == []
    with pytest.raises(RuntimeError):
        asyncio.run(renderer.run_in_pool(print))


def test_an_executor_of_the_caller_stays_open(model_path: Path) -> None:
    with ThreadPoolExecutor(1) as executor:
        HfRenderer(ModelFiles(model_path, model_path), RendererConfig(), executor=executor).close()
        assert executor.submit(lambda: 1).result() == 1


@pytest.mark.thorough
def test_the_pool_s_threads_import_no_modules_of_transformers(model_path: Path) -> None:
    code = """
from server.config import ModelFiles, RendererConfig
from server.renderers.prompts import ChatOptions, TextOptions
from server.renderers.registry import build_renderer
path = Path(sys.argv[1])
async def main(renderer):
    await renderer.render_chat_async([{'role': 'user', 'content': 'hi'}], ChatOptions())
    await renderer.render_text_async('hi', TextOptions(truncate_prompt_tokens=5))
    await renderer.detokenize_async([1, 2, 3])
with build_renderer(ModelFiles(path, path), RendererConfig()) as renderer:
    renderer.warm_up()
    asyncio.run(main(renderer))
print(seen)
"""
    assert run_watched(code, model_path) == "[]\n"


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
