"""Grok-2's renderer: template, options, output, threads."""

import json
from collections.abc import Callable, Iterator
from concurrent.futures import Executor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from server.config import ModelFiles, RendererConfig
from server.errors import RequestError
from server.renderers.grok2 import Grok2Renderer
from server.renderers.prompts import ChatOptions
from tests.server.renderers.grok2_folder import save_grok2

USER = {"role": "user", "content": " Who are you? \n"}
ANSWER = {"role": "assistant", "content": " I am Grok.\n"}


@pytest.fixture
def build(grok2_folder: Path, inline_executor: Executor) -> Iterator[Callable[..., Grok2Renderer]]:
    with ExitStack() as stack:

        def build(path: Path = grok2_folder, **settings: Any) -> Grok2Renderer:
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


def test_templates_get_tools_and_run_in_the_sandbox(build: Callable[..., Grok2Renderer]) -> None:
    tools = build(chat_template="{{ tools[0].x }}")
    assert tools.render_chat([USER], ChatOptions(tools=[{"x": 5}])).text == "5"
    with pytest.raises(RequestError, match="unsafe"):
        build(chat_template="{{ ''.__class__.__mro__ }}").render_chat([USER], ChatOptions())
