"""A tokenizer without the tokenizers library: ByT5's, in Python, with one token per byte."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from base.errors import RequestError
from server.renderers.detokenizer import PromptTail
from server.renderers.hf import HfRenderer
from server.renderers.prompts import ChatOptions, TextOptions
from server.renderers.tokenizers.loading import needs_torch

TEXT = "Größe 你好 😀 x"


@pytest.fixture
def slow_renderer(tmp_path: Path, build_inline: Callable[..., HfRenderer]) -> HfRenderer:
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "ByT5Tokenizer"}))
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "t5"}))
    assert needs_torch(tmp_path)
    return build_inline(tmp_path, chat_template="{% for m in messages %}{{ m.role }}: {{ m.content }}{% endfor %}")


def test_it_renders_and_decodes(slow_renderer):
    prompt = slow_renderer.render_chat([{"role": "user", "content": TEXT}], ChatOptions())
    assert prompt.text == "user: " + TEXT
    assert slow_renderer.detokenize(prompt.token_ids) == prompt.text
    short = slow_renderer.render_text("abc", TextOptions(add_special_tokens=False, truncate_prompt_tokens=2))
    assert slow_renderer.detokenize(short.token_ids) == "bc"
    with pytest.raises(RequestError):
        slow_renderer.detokenize([slow_renderer.vocab_size])


def test_it_decodes_token_by_token(slow_renderer):
    token_ids = slow_renderer.render_text(TEXT, TextOptions(add_special_tokens=False)).token_ids
    detokenizer = slow_renderer.create_detokenizer()
    pieces = [detokenizer.append([token_id]).text for token_id in token_ids]
    assert "".join(pieces) + detokenizer.finish() == TEXT
    assert set(pieces) <= {"", *TEXT}


def test_it_stops_at_a_stop_string(slow_renderer):
    token_ids = slow_renderer.render_text(TEXT, TextOptions(add_special_tokens=False)).token_ids
    detokenizer = slow_renderer.create_detokenizer(stop=["😀"], prompt=PromptTail(token_ids[:3]))
    assert detokenizer.append(token_ids[3:]) == (TEXT[2:].partition("😀")[0], "😀")
