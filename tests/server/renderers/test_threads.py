"""Many clients share the threads of a renderer's pool, which import nothing; the event loop stays free."""

import asyncio
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from server.config import ModelFiles, RendererConfig, TokenizerMode
from server.renderers.detokenizer import PromptTail
from server.renderers.prompts import ChatOptions, TextOptions
from server.renderers.registry import build_renderer
from tests.server.renderers.loop_turns import BLOCKED_TURNS, FREE_TURNS, count_turns
from tests.server.renderers.thread_imports import run_watched

Files = dict[str, tuple[ModelFiles, TokenizerMode]]

LARGE = [{"role": "user", "content": "The quick brown fox jumps over the lazy dog. " * 25_000}]
TOOL = {"type": "function", "function": {"name": "look", "parameters": {"type": "object", "properties": {}}}}


def text_of(i: int) -> str:
    return f"{i} " + "What is the capital of France? 😀 " * (i % 40)


def conversation(i: int, *, has_calls: bool) -> list[dict[str, Any]]:
    asked = {"role": "user", "content": text_of(i)}
    if not has_calls:
        return [asked]
    call = {"id": f"call{i:05}", "type": "function", "function": {"name": "look", "arguments": f'{{"at": {i}}}'}}
    calling = {"role": "assistant", "content": None, "tool_calls": [call]}
    return [asked, calling, {"role": "tool", "tool_call_id": call["id"], "content": text_of(i)}]


@pytest.mark.thorough
@pytest.mark.parametrize("kind", ["real", "byte_level", "v3", "tekken_v3"])
def test_many_clients_share_four_threads(kind, files_of):
    """A Hugging Face tokenizer that truncated by itself would fail here with "Already borrowed"."""
    files, mode = files_of[kind]
    with build_renderer(files, RendererConfig(tokenizer_mode=mode, num_workers=4)) as renderer:
        renderer.warm_up()
        plain = TextOptions(add_special_tokens=False)
        options = ChatOptions(tools=[TOOL] if mode == "mistral" else None)
        chats = [conversation(i, has_calls=mode == "mistral") for i in range(40)]
        expected = [renderer.render_text(text_of(i), plain).token_ids for i in range(40)]
        prompts = [renderer.render_chat(chat, options) for chat in chats]
        words = [renderer.encode_words(["Paris", f"word{i}"]) for i in range(40)]

        async def check(i: int) -> None:
            short = TextOptions(add_special_tokens=False, truncate_prompt_tokens=3 + i)
            run: Any = renderer.run_in_pool
            results = await asyncio.gather(
                run(renderer.render_text, text_of(i), plain),
                run(renderer.render_text, text_of(i), short),
                run(renderer.render_chat, chats[i], options),
                run(renderer.detokenize, expected[i]),
                run(renderer.encode_words, ["Paris", f"word{i}"]),
            )
            assert results[0].token_ids == expected[i]
            assert results[1].token_ids == expected[i][-(3 + i) :]
            assert results[2:] == [prompts[i], text_of(i), words[i]]
            detokenizer = renderer.create_detokenizer(prompt=PromptTail(prompts[i].token_ids))
            assert detokenizer.append(expected[i]).text.removeprefix(" ") == text_of(i)

        def client(first: int) -> None:
            for i in range(16):
                asyncio.run(check((first + i) % 40))

        with ThreadPoolExecutor(32) as clients:
            list(clients.map(client, range(32)))


@pytest.mark.alone
@pytest.mark.parametrize("kind", ["real", "v3", "tekken_v3"])
async def test_the_loop_turns_while_a_large_prompt_is_rendered(kind, files_of):
    files, mode = files_of[kind]
    with build_renderer(files, RendererConfig(tokenizer_mode=mode)) as renderer:
        renderer.warm_up()
        assert await count_turns(renderer.run_in_pool(renderer.render_chat, LARGE, ChatOptions())) > FREE_TURNS


@pytest.mark.alone
async def test_the_inline_executor_blocks_the_loop(files_of, build_inline):
    """Shows that the test above would fail if the work ran on the loop."""
    with build_inline(files_of["real"][0].path) as renderer:
        renderer.warm_up()
        assert await count_turns(renderer.run_in_pool(renderer.render_chat, LARGE, ChatOptions())) <= BLOCKED_TURNS


@pytest.mark.thorough
@pytest.mark.parametrize("kind", ["real", "v3"])
def test_the_pool_s_threads_import_no_modules(kind, files_of):
    code = """
from server.config import ModelFiles, RendererConfig
from server.renderers.prompts import ChatOptions, TextOptions
from server.renderers.registry import build_renderer
path, mode = Path(sys.argv[1]), sys.argv[2]
tool = {'type': 'function', 'function': {'name': 'f', 'parameters': {'type': 'object'}}}
async def main(renderer):
    run = renderer.run_in_pool
    await run(renderer.render_chat, [{'role': 'user', 'content': 'hi' * 1000}], ChatOptions(tools=[tool]))
    await run(renderer.render_text, 'hi' * 1000, TextOptions(truncate_prompt_tokens=5))
    await run(renderer.detokenize, [1, 2, 3])
with build_renderer(ModelFiles(path, path), RendererConfig(tokenizer_mode=mode)) as renderer:
    renderer.warm_up()
    asyncio.run(main(renderer))
print(seen)
"""
    files, mode = files_of[kind]
    assert run_watched(code, files.path, mode) == "[]\n"
