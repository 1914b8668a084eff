"""Hugging Face tokenizers: token boundaries, bytes of tokens, a tokenizer without the tokenizers library."""

import json
import tracemalloc
from collections.abc import Callable
from itertools import product
from pathlib import Path

import pytest
from tokenizers import processors

from base.errors import RequestError
from server.text.renderers.prompts import ChatOptions, TextOptions
from server.text.renderers.renderer import Renderer
from server.text.renderers.tokenizers.loading import load_tokenizer
from server.text.renderers.tokenizers.tokenizer import _NUM_CACHED, Cut, Tokenizer
from tests.server.text.renderers.conftest import KINDS, encode, feed

TEXTS = ["the quick brown fox", "a dog", "x", None]


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("kind", [*KINDS, "pairs"])
def test_one_text_or_two_are_cut_as_by_transformers(kind, side, tokenizer_folders):
    folder = tokenizer_folders["wordpiece" if kind == "pairs" else kind]
    loaded, reference = load_tokenizer(folder), load_tokenizer(folder)
    reference.truncation_side = side
    if kind == "pairs":
        template = processors.TemplateProcessing(
            single="<s> $A </s>", pair="<s> $A </s> $B:1 </s>:1", special_tokens=[("<s>", 1), ("</s>", 2)]
        )
        loaded.backend_tokenizer.post_processor = reference.backend_tokenizer.post_processor = template
    tokenizer = Tokenizer(loaded)
    for text, pair, limit in product(TEXTS[:3], TEXTS, range(3, 15)):
        expected = reference(text, pair, truncation=True, max_length=limit)
        found = tokenizer.encode_pair(text, pair, cut=Cut(limit, side))
        types = expected.get("token_type_ids")
        assert found == (expected["input_ids"][:limit], types and types[:limit]), (text, pair, limit)
    assert loaded.backend_tokenizer.truncation is None


def test_bytes_of_a_text_s_tokens_are_the_text(renderer):
    has_all_bytes = renderer.tokenizer.loaded.unk_token_id is None
    text = "the quick 你好 😀 Größe, e\u0301 [x ** 2]" if has_all_bytes else "the quick fox"
    token_ids = renderer.tokenizer.encode("a " + text, add_special_tokens=False)
    assert b"".join(map(renderer.tokenizer.token_bytes, token_ids)).decode().strip() == "a " + text


def test_parts_of_a_character_have_their_own_bytes(renderers):
    for kind in ("real", "byte_level", "llama"):
        renderer = renderers[kind]
        token_ids = renderer.tokenizer.encode("😀", add_special_tokens=False)
        parts = [renderer.tokenizer.token_bytes(token_id) for token_id in token_ids]
        assert b"".join(parts).strip() == "😀".encode()
        assert len([part for part in parts if part.strip()]) > 1
        assert all("\ufffd" in renderer.token_text(token_ids[i]) for i, part in enumerate(parts) if part.strip())


def test_the_token_of_a_word_after_a_space_includes_the_space(renderer):
    texts = list(map(renderer.token_text, renderer.tokenizer.encode("dog the", add_special_tokens=False)))
    assert "".join(texts).endswith("dog the")
    assert any(text.startswith(" t") for text in texts)


def test_an_id_beyond_the_vocabulary_has_no_text(renderer):
    """A model's last layer may have more rows than the vocabulary has tokens."""
    unknown = renderer.tokenizer.vocab_size + 5
    first, *others = encode(renderer, "the of")
    assert renderer.tokenizer.token_bytes(unknown) == b""
    assert feed(renderer.create_detokenizer(), [unknown, first, unknown, *others]) == "the of"


@pytest.mark.thorough
def test_the_bytes_of_a_whole_vocabulary_are_not_kept(renderers):
    renderer = renderers["real"]
    tracemalloc.start()
    try:
        for token_id in range(4 * _NUM_CACHED):
            assert renderer.tokenizer.token_bytes(token_id)
        kept_bytes, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert kept_bytes < 1 << 20


TEXT = "Größe 你好 😀 x"


@pytest.fixture
def slow_renderer(tmp_path: Path, build_inline: Callable[..., Renderer]) -> Renderer:
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "ByT5Tokenizer"}))
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "t5"}))
    return build_inline(tmp_path, chat_template="{% for m in messages %}{{ m.role }}: {{ m.content }}{% endfor %}")


def test_it_renders_and_decodes_at_once_and_token_by_token(slow_renderer):
    prompt = slow_renderer.render_chat([{"role": "user", "content": TEXT}], ChatOptions())
    assert prompt.text == "user: " + TEXT
    assert slow_renderer.detokenize(prompt.token_ids) == prompt.text
    short = slow_renderer.prompts.render("abc", TextOptions(add_special_tokens=False, truncate_prompt_tokens=2))
    assert slow_renderer.detokenize(short.token_ids) == "bc"
    with pytest.raises(RequestError):
        slow_renderer.detokenize([slow_renderer.tokenizer.vocab_size])
    detokenizer = slow_renderer.create_detokenizer()
    pieces = [detokenizer.append([token_id]).text for token_id in encode(slow_renderer, TEXT)]
    assert "".join(pieces) + detokenizer.finish() == TEXT
    assert set(pieces) <= {"", *TEXT}
