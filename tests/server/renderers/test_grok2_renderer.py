"""Grok-2's renderer: template, options, output, threads."""

import asyncio
import json
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from server.config import ModelFiles, RendererConfig
from server.errors import RequestError
from server.renderers.detokenizer import PromptTail
from server.renderers.grok2 import Grok2Renderer
from server.renderers.prompts import ChatOptions, TextOptions
from server.renderers.stop_strings import StopString
from server.renderers.tokenizers.files import TokenizerLoadError
from server.renderers.tokenizers.grok2_tokenizer import CHAT_TEMPLATE
from tests.server.renderers.grok2_folder import save_grok2

USER = {"role": "user", "content": " Who are you? \n"}
ANSWER = {"role": "assistant", "content": " I am Grok.\n"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_grok2(tmp_path_factory.mktemp("grok") / "grok-2")


@pytest.fixture
def build(folder: Path, inline_executor: Executor) -> Iterator[Callable[..., Grok2Renderer]]:
    with ExitStack() as stack:

        def build(path: Path = folder, **settings: Any) -> Grok2Renderer:
            renderer = Grok2Renderer(ModelFiles(path, path), RendererConfig(**settings), executor=inline_executor)
            return stack.enter_context(renderer)

        yield build


@pytest.fixture
def renderer(build: Callable[..., Grok2Renderer]) -> Grok2Renderer:
    return build()


CONVERSATIONS = [
    ([USER], "Human: Who are you?<|separator|>\n\nAssistant:"),
    (
        [{"role": "system", "content": "\tBe terse. "}, USER],
        "System: Be terse.<|separator|>\n\nHuman: Who are you?<|separator|>\n\nAssistant:",
    ),
    (
        [USER, ANSWER, {"role": "user", "content": "你好 😀"}],
        "Human: Who are you?<|separator|>\n\nAssistant:  I am Grok.\n<|separator|>\n\n"
        "Human: 你好 😀<|separator|>\n\nAssistant:",
    ),
    (
        [{"role": "developer", "content": "Be terse."}, {"role": "user", "content": "{{ 7 * 7 }}"}],
        "System: Be terse.<|separator|>\n\nHuman: {{ 7 * 7 }}<|separator|>\n\nAssistant:",
    ),
    (
        [{"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]}],
        "Human: a\nb<|separator|>\n\nAssistant:",
    ),
    ([{"role": "user", "content": ""}], "Human: <|separator|>\n\nAssistant:"),
]


@pytest.mark.parametrize(("messages", "expected"), CONVERSATIONS)
def test_a_conversation_is_written_in_grok_2_s_format(
    renderer: Grok2Renderer, messages: list[dict[str, Any]], expected: str
) -> None:
    prompt = renderer.render_chat(messages, ChatOptions())
    assert prompt.text == expected
    assert prompt.token_ids == renderer.tokenizer.encode(expected, add_special_tokens=False)
    assert renderer.detokenize(prompt.token_ids) == expected
    closed = renderer.render_chat(messages, ChatOptions(add_generation_prompt=False))
    assert closed.text == expected.removesuffix("Assistant:")


def test_a_final_message_is_continued(renderer: Grok2Renderer) -> None:
    options = ChatOptions(add_generation_prompt=False, continue_final_message=True)
    prompt = renderer.render_chat([USER, {"role": "assistant", "content": "I am "}], options)
    assert prompt.text == "Human: Who are you?<|separator|>\n\nAssistant: I am "
    with pytest.raises(RequestError, match="not compatible"):
        renderer.render_chat([USER, ANSWER], ChatOptions(continue_final_message=True))


def test_a_role_that_the_format_lacks_is_rejected(renderer: Grok2Renderer) -> None:
    with pytest.raises(RequestError, match="roles are system, user and assistant, got tool") as raised:
        renderer.render_chat([USER, {"role": "tool", "content": "x"}], ChatOptions())
    assert (raised.value.status, raised.value.param) == (400, "messages")


def test_the_operator_s_template_overrides_the_checkpoint_s(
    build: Callable[..., Grok2Renderer], tmp_path: Path
) -> None:
    path = save_grok2(tmp_path / "templates")
    (path / "tokenizer_config.json").write_text(json.dumps({"chat_template": "config", "eos_token": "<|eos|>"}))
    assert build(path).render_chat([USER], ChatOptions()).text == "config"
    (path / "chat_template.jinja").write_text("file")
    assert build(path).render_chat([USER], ChatOptions()).text == build(path).chat_template == "file"
    own = build(path, chat_template="{{ messages[0].content }}{{ a }}", default_chat_template_kwargs={"a": 1})
    assert own.render_chat([USER], ChatOptions()).text == USER["content"] + "1"
    assert own.render_chat([USER], ChatOptions(chat_template_kwargs={"a": 2})).text == USER["content"] + "2"


def test_templates_are_checked_as_for_other_tokenizers(build: Callable[..., Grok2Renderer]) -> None:
    with pytest.raises(TokenizerLoadError, match="--chat-template is not a Jinja template"):
        build(chat_template="{% for %}")
    with pytest.raises(RequestError, match="may not set tokenize"):
        build().render_chat([USER], ChatOptions(chat_template_kwargs={"tokenize": True}))
    tools = build(chat_template="{{ tools[0].x }}")
    assert tools.render_chat([USER], ChatOptions(tools=[{"x": 5}])).text == "5"
    with pytest.raises(RequestError, match="unsafe"):
        build(chat_template="{{ ''.__class__.__mro__ }}").render_chat([USER], ChatOptions())


def test_a_template_that_expects_parts_gets_parts(build: Callable[..., Grok2Renderer]) -> None:
    template = "{% for m in messages %}{% for c in m.content %}[{{ c.text }}]{% endfor %}{% endfor %}"
    assert build(chat_template=template).render_chat([ANSWER], ChatOptions()).text == f"[{ANSWER['content']}]"


def test_plain_prompts_words_and_ids(renderer: Grok2Renderer) -> None:
    whole = renderer.render_text("the quick brown fox", TextOptions()).token_ids
    options = TextOptions(truncate_prompt_tokens=2)
    assert renderer.render_text("the quick brown fox", options).token_ids == whole[-2:]
    assert renderer.render_text(whole, options).token_ids == whole[-2:]
    alone, spaced = (renderer.tokenizer.encode(text, add_special_tokens=False) for text in ("the", " the"))
    assert renderer.encode_words(["the"]) == [alone, spaced]
    with pytest.raises(RequestError, match="surrogate"):
        renderer.render_text("a\ud800", TextOptions())
    with pytest.raises(RequestError, match="no tokens"):
        renderer.render_text("", TextOptions())
    with pytest.raises(RequestError, match="is out of vocabulary range"):
        renderer.render_text([renderer.vocab_size], TextOptions())


@pytest.mark.parametrize("skip", [True, False])
def test_an_output_is_detokenized_incrementally(renderer: Grok2Renderer, skip: bool) -> None:
    text = " Größe 你好 🦊 fox<|separator|>"
    token_ids = renderer.tokenizer.encode(text, add_special_tokens=False)
    prompt = renderer.render_chat([USER], ChatOptions())
    detokenizer = renderer.create_detokenizer(skip_special_tokens=skip, prompt=PromptTail(prompt.token_ids))
    pieces = [detokenizer.append([token_id]).text for token_id in token_ids]
    assert "".join(pieces) + detokenizer.finish() == (text.removesuffix("<|separator|>") if skip else text)
    assert "\ufffd" not in "".join(pieces)
    assert "🦊" in pieces


def test_an_output_that_ends_inside_a_character_ends_with_a_replacement_character(renderer: Grok2Renderer) -> None:
    detokenizer = renderer.create_detokenizer(stop=[StopString("xyz")])
    assert [detokenizer.append([7 + byte]).text for byte in b"x\xf0\x9f"] == ["", "", ""]
    assert detokenizer.finish() == "x\ufffd"


@pytest.mark.thorough
def test_many_clients_share_four_threads(folder: Path) -> None:
    def conversation(i: int) -> list[dict[str, Any]]:
        return [{"role": "user", "content": f"{i} " + "the quick brown fox 你好 😀 " * (i * 9)}]

    with Grok2Renderer(ModelFiles(folder, folder), RendererConfig(num_workers=4)) as renderer:
        renderer.warm_up()
        assert renderer.chat_template == CHAT_TEMPLATE
        expected = [renderer.render_chat(conversation(i), ChatOptions()) for i in range(40)]

        async def check(i: int) -> None:
            whole, last, text, words = await asyncio.gather(
                renderer.render_chat_async(conversation(i), ChatOptions()),
                renderer.render_chat_async(conversation(i), ChatOptions(truncate_prompt_tokens=3 + i)),
                renderer.detokenize_async(expected[i].token_ids),
                renderer.encode_words_async(["the"]),
            )
            assert whole == expected[i]
            assert last.token_ids == expected[i].token_ids[-(3 + i) :]
            assert text == expected[i].text
            assert len(words) == 2

        def client(first: int) -> None:
            for i in range(40):
                asyncio.run(check((first + i) % 40))

        with ThreadPoolExecutor(32) as clients:
            list(clients.map(client, range(32)))
