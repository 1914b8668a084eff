"""All threads share one Mistral tokenizer, and the event loop stays responsive."""

import asyncio
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from server.config import ModelFiles, RendererConfig
from server.renderers.detokenizer import PromptTail
from server.renderers.mistral import MistralRenderer
from server.renderers.prompts import ChatOptions, TextOptions
from tests.server.renderers.loop_turns import FREE_TURNS, count_turns
from tests.server.renderers.thread_imports import run_watched

pytestmark = pytest.mark.thorough

TOOL = {"type": "function", "function": {"name": "look", "parameters": {"type": "object", "properties": {}}}}


def conversation(i: int) -> list[dict[str, Any]]:
    text = f"{i} " + "What is the capital of France? 😀 " * (i % 40)
    call = {"id": f"call{i:05}", "type": "function", "function": {"name": "look", "arguments": f'{{"at": {i}}}'}}
    return [
        {"role": "system", "content": "Be terse."},
        {"role": "user", "content": text},
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": call["id"], "content": text},
    ]


@pytest.mark.parametrize("kind", ["v3", "tekken_v3"])
def test_many_threads_share_one_renderer(kind: str, mistral_folders: dict[str, Path]) -> None:
    path = mistral_folders[kind]
    with MistralRenderer(ModelFiles(path, path), RendererConfig(num_workers=4)) as renderer:
        options, plain = ChatOptions(tools=[TOOL]), TextOptions(add_special_tokens=False)
        texts = [conversation(i)[1]["content"] for i in range(40)]
        expected = [renderer.render_text(text, plain).token_ids for text in texts]
        chats = [renderer.render_chat(conversation(i), options) for i in range(40)]

        async def check(i: int) -> None:
            short = TextOptions(add_special_tokens=False, truncate_prompt_tokens=3 + i)
            results = await asyncio.gather(
                renderer.render_text_async(texts[i], plain),
                renderer.render_text_async(texts[i], short),
                renderer.render_chat_async(conversation(i), options),
                renderer.detokenize_async(expected[i]),
                renderer.encode_words_async(["Paris", f"word{i}"]),
            )
            assert results[0].token_ids == expected[i]
            assert results[1].token_ids == expected[i][-(3 + i) :]
            assert results[2] == chats[i]
            assert results[3] == texts[i]
            detokenizer = renderer.create_detokenizer(prompt=PromptTail(chats[i].token_ids))
            assert detokenizer.append(expected[i]).text.removeprefix(" ") == texts[i]

        def client(first: int) -> None:
            for i in range(16):
                asyncio.run(check((first + i) % 40))

        with ThreadPoolExecutor(32) as clients:
            list(clients.map(client, range(32)))


@pytest.mark.alone
@pytest.mark.parametrize("kind", ["v3", "tekken_v3"])
async def test_the_loop_stays_free_while_a_large_prompt_is_rendered(
    kind: str, mistral_folders: dict[str, Path]
) -> None:
    path = mistral_folders[kind]
    messages = [{"role": "user", "content": "The quick brown fox jumps over the lazy dog. " * 25_000}]
    with MistralRenderer(ModelFiles(path, path), RendererConfig()) as renderer:
        renderer.warm_up()
        assert await count_turns(renderer.render_chat_async(messages, ChatOptions())) > FREE_TURNS


def test_the_pool_s_threads_import_no_modules(mistral_folders: dict[str, Path]) -> None:
    code = """
from server.config import ModelFiles, RendererConfig
from server.renderers.mistral import MistralRenderer
from server.renderers.prompts import ChatOptions, TextOptions
path = Path(sys.argv[1])
tool = {'type': 'function', 'function': {'name': 'f', 'parameters': {'type': 'object'}}}
async def main(renderer):
    options = ChatOptions(tools=[tool])
    await renderer.render_chat_async([{'role': 'user', 'content': 'hi' * 1000}], options)
    await renderer.render_text_async('hi' * 1000, TextOptions(truncate_prompt_tokens=5))
    await renderer.detokenize_async([1, 2, 3])
with MistralRenderer(ModelFiles(path, path), RendererConfig()) as renderer:
    renderer.warm_up()
    asyncio.run(main(renderer))
print(seen)
"""
    assert run_watched(code, mistral_folders["v3"]) == "[]\n"
