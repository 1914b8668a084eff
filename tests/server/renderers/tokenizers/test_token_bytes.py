"""Bytes and texts of single tokens."""

import tracemalloc

from tests.server.renderers.detokenizing import encode, feed


def test_bytes_of_a_text_s_tokens_are_the_text(renderer):
    text = "the quick 你好 😀 Größe, e\u0301 [x ** 2]" if renderer._hf.loaded.unk_token_id is None else "the quick fox"
    token_ids = renderer.tokenizer.encode("a " + text, add_special_tokens=False)
    assert b"".join(map(renderer.token_bytes, token_ids)).decode().strip() == "a " + text


def test_parts_of_a_character_have_their_own_bytes(renderers):
    for kind in ("real", "byte_level", "llama"):
        renderer = renderers[kind]
        token_ids = renderer.tokenizer.encode("😀", add_special_tokens=False)
        parts = [renderer.token_bytes(token_id) for token_id in token_ids]
        assert b"".join(parts).strip() == "😀".encode()
        assert len([part for part in parts if part.strip()]) > 1
        assert all("\ufffd" in renderer.token_text(token_ids[i]) for i, part in enumerate(parts) if part.strip())


def test_a_byte_level_vocabulary_has_a_token_for_every_byte(renderers):
    renderer = renderers["byte_level"]
    known = {renderer.token_bytes(token_id) for token_id in range(renderer.vocab_size)}
    assert {bytes([byte]) for byte in range(256)} <= known


def test_the_token_of_a_word_after_a_space_includes_the_space(renderer):
    texts = list(map(renderer.token_text, renderer.tokenizer.encode("dog the", add_special_tokens=False)))
    assert "".join(texts).endswith("dog the")
    assert any(text.startswith(" t") for text in texts)


def test_the_text_of_a_special_token_is_its_name(renderers):
    assert renderers["real"].token_text(2) == "<|im_end|>"
    assert renderers["llama"].token_text(2) == "</s>"
    assert renderers["wordpiece"].token_text(2) == "</s>"
    byte_level = renderers["byte_level"]
    assert byte_level.token_text(byte_level.vocab_size - 1) == "<tool call>"


def test_an_id_beyond_the_vocabulary_has_no_text(any_renderer):
    """A model's last layer may be larger than the vocabulary."""
    unknown = any_renderer.vocab_size + 5
    first, *others = encode(any_renderer, "the of")
    assert any_renderer.token_bytes(unknown) == b""
    assert feed(any_renderer.create_detokenizer(), [unknown, first, unknown, *others]) == "the of"


def test_the_bytes_of_a_whole_vocabulary_are_not_kept(renderers):
    renderer = renderers["real"]
    tracemalloc.start()
    try:
        for token_id in range(renderer.vocab_size):
            assert renderer.token_bytes(token_id)
        kept_bytes, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert kept_bytes < 2 << 20
