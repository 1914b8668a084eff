"""Plain prompts, token ids, bad words and detokenization."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer

from server.errors import RequestError
from server.renderers.hf import HfRenderer
from server.renderers.prompts import TextOptions

TEXTS = [
    "The capital of France is",
    "😀 你好 Größe",
    "  lead\n\n\ttabs ",
    "def f(x):\n    return x ** 2",
    "a",
    "\x00\u200b",
]


@pytest.mark.parametrize("add_special_tokens", [True, False])
def test_text_encodes_and_decodes_as_with_auto_tokenizer(renderer: HfRenderer, add_special_tokens: bool) -> None:
    reference = AutoTokenizer.from_pretrained(renderer.files.tokenizer_path)
    for text in TEXTS:
        expected = reference.encode(text, add_special_tokens=add_special_tokens)
        if not expected:
            continue
        prompt = renderer.render_text(text, TextOptions(add_special_tokens=add_special_tokens))
        assert (prompt.token_ids, prompt.text) == (expected, text)
        for skip in (True, False):
            assert renderer.detokenize(expected, skip) == reference.decode(expected, skip_special_tokens=skip)


def test_token_ids_are_passed_unchanged(renderer: HfRenderer) -> None:
    last = renderer.vocab_size - 1
    prompt = renderer.render_text([0, last, 5], TextOptions())
    assert (prompt.token_ids, prompt.text) == ([0, last, 5], None)


@pytest.mark.parametrize("bad", [-1, 10**6, 2**40])
def test_ids_outside_the_vocabulary_are_rejected(renderer: HfRenderer, bad: int) -> None:
    with pytest.raises(RequestError, match=f"Token id {bad} "):
        renderer.render_text([1, bad], TextOptions())
    with pytest.raises(RequestError, match=f"Token id {bad} "):
        renderer.detokenize([1, bad])


def test_the_first_id_beyond_the_vocabulary_is_rejected(renderer: HfRenderer) -> None:
    with pytest.raises(RequestError):
        renderer.render_text([renderer.vocab_size], TextOptions())


@pytest.mark.parametrize("prompt", ["", []])
def test_an_empty_prompt_is_rejected(renderers: dict[str, HfRenderer], prompt: Any) -> None:
    with pytest.raises(RequestError, match="no tokens") as raised:
        renderers["real"].render_text(prompt, TextOptions())
    assert (raised.value.status, raised.value.param) == (400, "prompt")


def test_a_lone_surrogate_is_rejected(renderer: HfRenderer) -> None:
    with pytest.raises(RequestError, match="surrogate"):
        renderer.render_text("a\ud800b", TextOptions())


def test_truncation_keeps_the_last_tokens(renderer: HfRenderer) -> None:
    whole = renderer.render_text("the quick brown fox", TextOptions(add_special_tokens=False)).token_ids
    options = TextOptions(add_special_tokens=False, truncate_prompt_tokens=2)
    assert renderer.render_text("the quick brown fox", options).token_ids == whole[-2:]
    assert renderer.render_text(whole, options).token_ids == whole[-2:]
    assert renderer.render_text("the quick brown fox", TextOptions(add_special_tokens=False)).token_ids == whole


def test_the_side_of_the_truncation_can_be_chosen(renderer: HfRenderer) -> None:
    text = "the quick brown fox"
    whole = renderer.render_text(text, TextOptions()).token_ids
    for prompt in (text, whole):
        first = TextOptions(truncate_prompt_tokens=2, truncation_side="right")
        assert renderer.render_text(prompt, first).token_ids == whole[:2]
        last = TextOptions(truncate_prompt_tokens=2, truncation_side="left")
        assert renderer.render_text(prompt, last).token_ids == whole[-2:]


def test_truncation_keeps_the_begin_of_text_token(renderers: dict[str, HfRenderer]) -> None:
    whole = renderers["llama"].render_text("the quick brown fox", TextOptions()).token_ids
    truncated = renderers["llama"].render_text("the quick brown fox", TextOptions(truncate_prompt_tokens=4)).token_ids
    assert whole[0] == 1
    assert truncated == [1, *whole[-3:]]


def test_truncation_to_zero_tokens_is_rejected(renderer: HfRenderer) -> None:
    for prompt in ("the quick", [1, 2, 3]):
        with pytest.raises(RequestError, match="no tokens"):
            renderer.render_text(prompt, TextOptions(truncate_prompt_tokens=0))


def test_truncation_to_the_model_s_length_leaves_room_for_one_token(
    model_path: Path, build_inline: Callable[..., HfRenderer]
) -> None:
    renderer = build_inline(model_path)
    everything = TextOptions(truncate_prompt_tokens=-1)
    assert len(renderer.render_text([5] * 20, everything).token_ids) == 20
    renderer.max_model_len = 8
    assert len(renderer.render_text([5] * 20, everything).token_ids) == 7
    assert len(renderer.render_text("the " * 20, everything).token_ids) == 7
    with pytest.raises(RequestError, match="at most the model's 8"):
        renderer.render_text("the", TextOptions(truncate_prompt_tokens=9))


def test_a_text_that_cannot_fit_is_rejected_before_tokenization(
    model_path: Path, build_inline: Callable[..., HfRenderer]
) -> None:
    renderer = build_inline(model_path)
    renderer.max_model_len = 8
    longest = max(renderer._hf.loaded.get_vocab(), key=len)
    assert len(renderer.render_text("x" * 8 * len(longest), TextOptions()).token_ids) > 8
    with pytest.raises(RequestError, match="maximum context length is 8 tokens"):
        renderer.render_text("x" * (8 * len(longest) + 1), TextOptions())


def test_bad_words_are_encoded_alone_and_after_a_space(renderers: dict[str, HfRenderer]) -> None:
    renderer = renderers["real"]
    encode = renderer._hf.loaded.encode
    assert renderer.encode_words(["Paris"]) == [encode("Paris"), encode(" Paris")]
    assert renderer.encode_words([" Paris"]) == [encode("Paris"), encode(" Paris")]
    assert len(encode("zebra")) != len(encode(" zebra"))
    assert renderer.encode_words(["zebra"]) == [encode("zebra")]


def test_a_bad_word_without_tokens_is_rejected(renderers: dict[str, HfRenderer]) -> None:
    with pytest.raises(RequestError, match="bad_words") as raised:
        renderers["real"].encode_words(["fine", "  "])
    assert raised.value.param == "bad_words"


def test_tokenizer_properties(renderers: dict[str, HfRenderer]) -> None:
    real = renderers["real"]
    assert (real.vocab_size, real.eos_token_id) == (49152, 2)
    assert real.chat_template == (real.files.tokenizer_path / "chat_template.jinja").read_text()


def test_the_vocabulary_size_follows_from_the_highest_id(
    tokenizer_folders: dict[str, Path], tmp_path: Path, build_inline: Callable[..., HfRenderer]
) -> None:
    content = json.loads((tokenizer_folders["wordpiece"] / "tokenizer.json").read_text())
    content["model"]["vocab"]["far"] = 9000
    (tmp_path / "tokenizer.json").write_text(json.dumps(content))
    renderer = build_inline(tmp_path)
    assert len(renderer._hf.loaded) < 9000
    assert renderer.vocab_size == 9001
    assert renderer.render_text([9000], TextOptions()).token_ids == [9000]
