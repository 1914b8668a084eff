"""A renderer's pool: work waits and is cancelled, threads import nothing, the event loop never waits."""

import asyncio
import os
import threading
from collections.abc import Awaitable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pybase64
import pytest
import torch

from base.errors import ConfigError, RequestError
from base.machine.processors import usable_count
from server.terms.config import ModelFiles, RendererConfig
from server.terms.types import TensorData
from server.text.renderers import prompts as prompts_module
from server.text.renderers.detokenizer import PromptTail
from server.text.renderers.prompt_embeds import EmbedsLimits
from server.text.renderers.prompts import ChatOptions, EmbedsPrompt, TextOptions
from server.text.renderers.renderer import Renderer
from tests.server.engine.features.tiny_vlm import image_messages, image_url, render_with_images, save_vlm
from tests.support.cli import python_output
from tests.support.embeds_payloads import saved, torch_payload


async def test_the_pools_threads_give_way_to_the_event_loop(tiny_llama):
    def niceness() -> int:
        return os.getpriority(os.PRIO_PROCESS, threading.get_native_id())

    with Renderer(ModelFiles(tiny_llama, tiny_llama), RendererConfig(num_workers=2)) as renderer:
        assert await renderer.pools.run(niceness) == min(niceness() + 4, 19)


async def test_waiting_times_are_reported(tiny_llama, monkeypatch):
    now_s = 0.0
    monkeypatch.setattr("server.text.renderers.pools.perf_counter", lambda: now_s)
    with Renderer(ModelFiles(tiny_llama, tiny_llama), RendererConfig(num_workers=1)) as renderer:
        pool = renderer.pools.owned["text"]
        waits: list[float] = []
        pool.on_wait = waits.append
        release = threading.Event()
        busy = asyncio.ensure_future(renderer.pools.run(release.wait, 60))
        waiting = asyncio.ensure_future(renderer.pools.run(int))
        while (pool.num_waiting, len(waits)) != (1, 1):  # the thread runs the first, and the second waits
            await asyncio.sleep(0.001)
        now_s = 5.0
        release.set()
        assert (await busy, await waiting) == (True, 0)
        assert waits == [0, 5]


@pytest.mark.parametrize("number", [-1, 0, 4 * usable_count() + 1 if usable_count() > 1 else 5])
def test_an_invalid_number_of_workers_is_rejected(number):
    with pytest.raises(ConfigError, match=rf"--renderer-num-workers must be from 1 to \d+: .*got {number}$"):
        RendererConfig(num_workers=number)


def text_of(i: int) -> str:
    return f"{i} " + "What is the capital of France? 😀 " * (i % 40)


@pytest.mark.thorough
def test_many_clients_share_four_threads(model_path):
    """If the tokenizer itself truncated texts, this would fail with "Already borrowed"."""
    with Renderer(ModelFiles(model_path, model_path), RendererConfig(num_workers=4)) as renderer:
        renderer.warm_up()
        plain = TextOptions(add_special_tokens=False)
        options = ChatOptions()
        chats = [[{"role": "user", "content": text_of(i)}] for i in range(40)]
        expected = [renderer.prompts.render(text_of(i), plain).token_ids for i in range(40)]
        prompts = [renderer.render_chat(chat, options) for chat in chats]

        async def check(i: int) -> None:
            short = TextOptions(add_special_tokens=False, truncate_prompt_tokens=3 + i)
            run: Any = renderer.pools.run
            results = await asyncio.gather(
                run(renderer.prompts.render, text_of(i), plain),
                run(renderer.prompts.render, text_of(i), short),
                run(renderer.render_chat, chats[i], options),
                run(renderer.detokenize, expected[i]),
            )
            assert results[0].token_ids == expected[i]
            assert results[1].token_ids == expected[i][-(3 + i) :]
            assert results[2:] == [prompts[i], text_of(i)]
            detokenizer = renderer.create_detokenizer(prompt=PromptTail(prompts[i].token_ids))
            assert detokenizer.append(expected[i]).text.removeprefix(" ") == text_of(i)

        def client(first: int) -> None:
            for i in range(8):
                asyncio.run(check((first + i) % 40))

        with ThreadPoolExecutor(32) as clients:
            list(clients.map(client, range(32)))


LARGE_EMBEDS = EmbedsLimits(max_model_len=4096, width=4096, dtype="bfloat16")


@pytest.fixture(scope="module")
def large_prompts() -> list[EmbedsPrompt]:
    """Prompts of 2048 rows of 4096 numbers. One has the model's dtype, and two must be cast."""
    rows = torch.randn(2048, 4096, generator=torch.Generator().manual_seed(0))
    payloads = saved(rows.bfloat16()), saved(rows), saved(rows.half())
    return [EmbedsPrompt(pybase64.b64encode_as_string(payload)) for payload in payloads]


async def test_prompts_of_a_request_are_rendered_at_once_and_never_on_the_loop(tiny_llama, monkeypatch):
    """vLLM has fixed this without a test (https://github.com/vllm-project/vllm/pull/43792)."""
    both_begun = threading.Barrier(2, timeout=60)
    threads: list[str] = []

    def load(embeds: str, limits: EmbedsLimits, *, truncate_to: int | None) -> TensorData:
        threads.append(threading.current_thread().name)
        both_begun.wait()
        return TensorData("float32", (1, 1), memoryview(bytes(4)))

    monkeypatch.setattr(prompts_module, "safe_load_prompt_embeds", load)
    with Renderer(ModelFiles(tiny_llama, tiny_llama), RendererConfig(num_workers=2)) as renderer:
        renderer.prompts.embeds_limits = LARGE_EMBEDS
        prompts = [EmbedsPrompt("a"), EmbedsPrompt("b")]
        assert len(await renderer.render_prompts_async(prompts, TextOptions())) == 2
    assert sorted(threads) == ["renderer_0", "renderer_1"]


async def test_the_first_fault_of_many_prompts_is_raised(tiny_llama):
    with Renderer(ModelFiles(tiny_llama, tiny_llama), RendererConfig(num_workers=2)) as renderer:
        texts = [text_of(i) for i in range(100)]
        rendered = await renderer.render_prompts_async(texts, TextOptions())
        assert [prompt.text for prompt in rendered] == texts
        with pytest.raises(RequestError, match="Token id -1 "):
            await renderer.render_prompts_async([[1]] * 99 + [[-1]], TextOptions())


FREE_TURNS = 10
"""A loop that is not blocked makes many more turns than this during work of 100 ms or more."""


async def count_turns(work: Awaitable[object], *, every_s: float = 0.001) -> int:
    """Counts the running loop's turns until the work is done. Counts one turn per `every_s` seconds at most.

    A loop that the work blocks makes at most one turn.
    """
    task = asyncio.ensure_future(work)
    num_turns = 0
    while not task.done():
        await asyncio.sleep(every_s)
        num_turns += 1
    await task
    return num_turns


@pytest.mark.thorough
@pytest.mark.alone
async def test_the_loop_turns_while_embeddings_are_loaded(tokenizer_folders, inline_executor, large_prompts):
    folder = tokenizer_folders["byte_level"]
    files = ModelFiles(folder, folder)
    turns = []
    for executor in (None, inline_executor):
        with Renderer(files, RendererConfig(num_workers=2), executor=executor) as renderer:
            renderer.prompts.embeds_limits = LARGE_EMBEDS
            rendering = asyncio.ensure_future(renderer.render_prompts_async(large_prompts, TextOptions()))
            turns.append(await count_turns(rendering, every_s=0))
        assert [prompt.inputs and prompt.inputs.embeds.shape for prompt in rendering.result()] == [(2048, 4096)] * 3
    assert turns[0] > 100
    assert turns[1] < 10, "without a pool the loop stands still"


@pytest.mark.thorough
@pytest.mark.alone
async def test_the_loop_turns_while_images_are_decoded_and_processed(tmp_path, inline_executor):
    """With the inline renderer, the work runs on the loop, so the test can fail."""
    path = save_vlm(tmp_path, "llava")
    large = image_messages(*(image_url(seed, 2000, 2000, "JPEG") for seed in range(2)))
    turns = []
    for executor in (None, inline_executor):
        with Renderer(ModelFiles(path, path), RendererConfig(), executor=executor) as renderer:
            renderer.warm_up()
            turns.append(await count_turns(render_with_images(renderer, large, ChatOptions())))
    assert turns[0] > 5 * FREE_TURNS
    assert turns[1] <= FREE_TURNS, "a few steps, each of which holds the loop"


@pytest.mark.thorough
def test_the_pool_s_threads_import_no_modules_and_no_torch(tokenizer_folders):
    code = """
from server.terms.config import ModelFiles, RendererConfig
from server.text.renderers.prompt_embeds import EmbedsLimits
from server.text.renderers.prompts import ChatOptions, EmbedsPrompt, TextOptions
from server.text.renderers.renderer import Renderer
path = Path(sys.argv[1])
tool = {'type': 'function', 'function': {'name': 'f', 'parameters': {'type': 'object'}}}
prompts = [EmbedsPrompt(text) for text in sys.argv[2:]]
async def main(renderer):
    run = renderer.pools.run
    await run(renderer.render_chat, [{'role': 'user', 'content': 'hi' * 1000}], ChatOptions(tools=[tool]))
    await run(renderer.prompts.render, 'hi' * 1000, TextOptions(truncate_prompt_tokens=5))
    await run(renderer.detokenize, [1, 2, 3])
    return await run(renderer.prompts.render_all, prompts, TextOptions())
with Renderer(ModelFiles(path, path), RendererConfig()) as renderer:
    renderer.warm_up()
    renderer.prompts.embeds_limits = EmbedsLimits(64, 16, 'bfloat16')
    rendered = asyncio.run(main(renderer))
print([len(prompt.token_ids) for prompt in rendered], seen, 'torch' in sys.modules)
"""
    rows = torch.randn(5, 16)
    texts = torch_payload(rows), torch_payload(rows.bfloat16())
    assert run_watched(code, tokenizer_folders["byte_level"], *texts) == "[5, 5] [] False\n"


@pytest.mark.thorough
def test_threads_that_load_images_import_no_modules_after_a_lean_start(tmp_path):
    """Loads as a launcher does, where only the main thread imports. Then renders images of every format."""
    code = """
from server.terms.config import ModelFiles, RendererConfig
from server.text.renderers.renderer import Renderer
from server.terms.limits import LimitsConfig
from server.operation.admission import Admission, Lease
from server.text.renderers.prompts import ChatOptions
from startup.imports.heavy import import_vision
import_vision()
path = Path(sys.argv[1])
with Renderer(ModelFiles(path, path), RendererConfig()) as renderer:
    renderer.warm_up()
    parts = [{"type": "image_url", "image_url": url} for url in sys.argv[2:]]
    messages = [{"role": "user", "content": parts}]
    async def main():
        images = await renderer.load_images(messages, Lease(Admission(LimitsConfig())))
        await renderer.pools.run(renderer.render_chat, messages, ChatOptions(), images)
    asyncio.run(main())
print(seen, "torch._dynamo" in sys.modules, "sympy" in sys.modules)
"""
    folder = save_vlm(tmp_path, "qwen2_vl")
    urls = [image_url(1, kind=kind) for kind in ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF")]
    assert run_watched(code, folder, *urls) == "[] False False\n"


_WATCH = """
import asyncio, sys, threading
from pathlib import Path
seen = []
def hook(event, args):
    if event == 'import' and threading.current_thread() is not threading.main_thread(): seen.append(args[0])
sys.addaudithook(hook)
"""


def run_watched(code: str, *arguments: object) -> str:
    """Runs code in a new process, where `seen` lists imports of other threads. Returns its output."""
    return python_output(_WATCH + code, *arguments)
