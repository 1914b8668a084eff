"""DeepSeek-V3.2's renderer: options, tokens, threads."""

from collections.abc import Callable
from concurrent.futures import Executor
from pathlib import Path
from typing import Any

import pytest

from server.config import ModelFiles, RendererConfig
from server.errors import RequestError
from server.renderers.deepseek_v32 import DeepseekV32Renderer
from server.renderers.prompts import ChatOptions, TextOptions
from server.renderers.tokenizers.files import TokenizerLoadError, is_deepseek_v32
from server.renderers.tokenizers.loading import needs_torch
from tests.server.renderers.deepseek_v32_folder import BEGIN, END, MARKERS, save_deepseek_v32

USER = {"role": "user", "content": "Where is Größe 你好 😀?"}
OPENED = "<｜begin▁of▁sentence｜><｜User｜>Where is Größe 你好 😀?<｜Assistant｜>"


@pytest.fixture
def build(deepseek_v32_folder: Path, inline_executor: Executor) -> Callable[..., DeepseekV32Renderer]:
    def build(path: Path = deepseek_v32_folder, **settings: Any) -> DeepseekV32Renderer:
        return DeepseekV32Renderer(ModelFiles(path, path), RendererConfig(**settings), executor=inline_executor)

    return build


@pytest.fixture
def renderer(build: Callable[..., DeepseekV32Renderer]) -> DeepseekV32Renderer:
    return build()


def test_markers_are_single_tokens_and_the_text_decodes_back(renderer: DeepseekV32Renderer) -> None:
    prompt = renderer.render_chat([USER], ChatOptions())
    assert prompt.text == OPENED + "</think>"
    assert renderer.detokenize(prompt.token_ids) == prompt.text
    texts = [renderer.token_text(token_id) for token_id in prompt.token_ids]
    assert texts[:2] == [BEGIN, "<｜User｜>"]
    assert texts[-2:] == ["<｜Assistant｜>", "</think>"]
    assert b"".join(map(renderer.token_bytes, prompt.token_ids)) == prompt.text.encode()


def test_every_marker_has_one_token(renderer: DeepseekV32Renderer) -> None:
    for marker in (BEGIN, END, *MARKERS):
        assert len(renderer.tokenizer.encode(marker, add_special_tokens=False)) == 1


@pytest.mark.parametrize(
    ("default", "given", "is_thinking"),
    [
        ({}, {}, False),
        ({}, {"thinking": True}, True),
        ({}, {"enable_thinking": True}, True),
        ({}, {"thinking": False, "enable_thinking": True}, True),
        ({}, {"thinking": None, "reasoning_effort": "high"}, False),
        ({"thinking": True}, {}, True),
        ({"thinking": True}, {"thinking": False}, False),
    ],
)
def test_request_and_operator_can_turn_thinking_on(
    build: Callable[..., DeepseekV32Renderer], default: dict[str, Any], given: dict[str, Any], is_thinking: bool
) -> None:
    renderer = build(default_chat_template_kwargs=default)
    prompt = renderer.render_chat([USER], ChatOptions(chat_template_kwargs=given))
    assert prompt.text == OPENED + ("<think>" if is_thinking else "</think>")


@pytest.mark.parametrize("value", ["false", 2, []])
def test_thinking_that_is_not_a_boolean_is_rejected(renderer: DeepseekV32Renderer, value: Any) -> None:
    with pytest.raises(RequestError, match="must be true or false") as raised:
        renderer.render_chat([USER], ChatOptions(chat_template_kwargs={"thinking": value}))
    assert raised.value.param == "chat_template_kwargs"


def test_the_assistant_s_marker_is_part_of_the_user_s_message(renderer: DeepseekV32Renderer) -> None:
    assert renderer.render_chat([USER], ChatOptions(add_generation_prompt=False)).text == OPENED + "</think>"


def test_a_final_message_is_continued(renderer: DeepseekV32Renderer) -> None:
    messages = [USER, {"role": "assistant", "content": "It is"}]
    options = ChatOptions(add_generation_prompt=False, continue_final_message=True)
    assert renderer.render_chat(messages, options).text == OPENED + "</think>It is"


def test_a_template_of_the_operator_is_rejected(build: Callable[..., DeepseekV32Renderer]) -> None:
    with pytest.raises(TokenizerLoadError, match="--chat-template cannot be combined with"):
        build(chat_template="{{ 1 }}")


def test_parts_tools_and_response_formats_reach_the_encoding(renderer: DeepseekV32Renderer) -> None:
    messages = [
        {"role": "system", "content": "S", "response_format": {"type": "json_object"}},
        {"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]},
    ]
    tool = {"type": "function", "function": {"name": "look"}}
    text = renderer.render_chat(messages, ChatOptions(tools=[tool])).text
    assert text is not None
    assert '<functions>\n{"name": "look"}\n</functions>\nS\n\n## Response Format:' in text
    assert text.endswith('reply:\n{"type": "json_object"}<｜User｜>a\nb<｜Assistant｜></think>')


def test_tokenizer_properties(renderer: DeepseekV32Renderer, deepseek_v32_folder: Path) -> None:
    assert not needs_torch(deepseek_v32_folder)
    assert renderer.token_text(renderer.eos_token_id or 0) == END
    begin = renderer.render_text("x", TextOptions()).token_ids[0]
    assert renderer.token_text(begin) == BEGIN


def test_the_kind_is_detected_from_the_model_type_or_architecture(tmp_path: Path) -> None:
    assert _is_v32(save_deepseek_v32(tmp_path / "v32"))
    assert _is_v32(save_deepseek_v32(tmp_path / "type", architectures=None))
    assert _is_v32(save_deepseek_v32(tmp_path / "architecture", model_type="deepseek_v3"))
    older = save_deepseek_v32(tmp_path / "v3", model_type="deepseek_v3", architectures=["DeepseekV3ForCausalLM"])
    assert not _is_v32(older)
    assert not _is_v32(tmp_path)


def test_a_checkpoint_with_a_template_uses_the_ordinary_renderer(tmp_path: Path) -> None:
    path = save_deepseek_v32(tmp_path / "exp")
    (path / "chat_template.jinja").write_text("{{ messages }}")
    assert not _is_v32(path)
    (path / "chat_template.jinja").unlink()
    (path / "tokenizer_config.json").write_text('{"chat_template": "{{ messages }}"}')
    assert not _is_v32(path)


def _is_v32(path: Path) -> bool:
    return is_deepseek_v32(ModelFiles(path, path))
