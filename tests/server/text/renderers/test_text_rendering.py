"""Plain prompts, token ids and detokenization."""

import json
from typing import Any

import pytest
from transformers import AutoTokenizer

from base.errors import RequestError
from server.text.renderers.prompts import TextOptions
from tests.server.text.renderers.conftest import KINDS, TEXTS


@pytest.mark.parametrize("add_special_tokens", [True, False])
def test_text_encodes_and_decodes_as_with_auto_tokenizer(renderer, add_special_tokens):
    reference = AutoTokenizer.from_pretrained(renderer.files.tokenizer_path)
    for text in TEXTS:
        expected = reference.encode(text, add_special_tokens=add_special_tokens)
        prompt = renderer.prompts.render(text, TextOptions(add_special_tokens=add_special_tokens))
        assert (prompt.token_ids, prompt.text) == (expected, text)
        for skip in (True, False):
            assert renderer.detokenize(expected, skip) == reference.decode(expected, skip_special_tokens=skip)


def test_token_ids_of_the_vocabulary_are_passed_unchanged(renderer):
    last = renderer.tokenizer.vocab_size - 1
    prompt = renderer.prompts.render([0, last, 5], TextOptions())
    assert (prompt.token_ids, prompt.text) == ([0, last, 5], None)
    for bad in (-1, last + 1, 2**40):
        with pytest.raises(RequestError, match=f"Token id {bad} is out of vocabulary range"):
            renderer.prompts.render([1, bad], TextOptions())
        with pytest.raises(RequestError, match=f"Token id {bad} "):
            renderer.detokenize([1, bad])


@pytest.mark.parametrize("prompt", ["", []])
def test_an_empty_prompt_is_rejected(renderer, prompt):
    with pytest.raises(RequestError, match="no tokens") as raised:
        renderer.prompts.render(prompt, TextOptions(add_special_tokens=False))
    assert (raised.value.status, raised.value.param) == (400, "prompt")


def test_a_lone_surrogate_is_rejected(renderer):
    with pytest.raises(RequestError, match="surrogate"):
        renderer.prompts.render("a\ud800b", TextOptions())
    with pytest.raises(UnicodeEncodeError):
        renderer.tokenizer.encode("a\ud800b", add_special_tokens=False)


def test_truncation_keeps_the_last_tokens_and_the_begin_of_text_token(renderer):
    def rendered(prompt: str | list[int], limit: int | None, **options: Any) -> list[int]:
        return renderer.prompts.render(prompt, TextOptions(truncate_prompt_tokens=limit, **options)).token_ids

    text = "the quick brown fox"
    whole, bare = rendered(text, None), rendered(text, None, add_special_tokens=False)
    first = whole[: len(whole) - len(bare)]
    assert whole == first + bare
    assert rendered(text, 99) == rendered(text, len(whole)) == whole
    assert rendered(text, 3) == first + bare[-(3 - len(first)) :]
    assert rendered(text, 2, add_special_tokens=False) == rendered(bare, 2) == bare[-2:]
    for prompt in (text, whole):
        with pytest.raises(RequestError, match="no tokens"):
            rendered(prompt, 0)


def test_a_prompt_fits_the_model_s_context_and_leaves_room_for_one_token(renderer, monkeypatch):
    everything = TextOptions(truncate_prompt_tokens=-1)
    assert len(renderer.prompts.render([5] * 20, everything).token_ids) == 20
    monkeypatch.setattr(renderer.prompts, "max_model_len", 8)
    assert len(renderer.prompts.render([5] * 20, everything).token_ids) == 7
    assert len(renderer.prompts.render("the " * 20, everything).token_ids) == 7
    with pytest.raises(RequestError, match="at most the model's 8"):
        renderer.prompts.render("the", TextOptions(truncate_prompt_tokens=9))
    most_chars = 8 * renderer.tokenizer.max_token_chars
    assert renderer.prompts.render("x" * most_chars, TextOptions()).token_ids
    with pytest.raises(RequestError, match="maximum context length is 8 tokens"):  # before tokenization
        renderer.prompts.render("x" * (most_chars + 1), TextOptions())


@pytest.mark.thorough
@pytest.mark.parametrize("renderer", [kind for kind in KINDS if kind != "wordpiece"], indirect=True)
def test_no_token_is_longer_than_the_longest(renderer):
    ordinary = set(range(renderer.tokenizer.vocab_size)) - renderer.tokenizer.added_tokens.keys()
    assert max(len(renderer.token_text(i)) for i in ordinary) <= renderer.tokenizer.max_token_chars


def test_the_vocabulary_size_follows_from_the_highest_id(tokenizer_folders, tmp_path, build_inline):
    content = json.loads((tokenizer_folders["wordpiece"] / "tokenizer.json").read_text())
    content["model"]["vocab"]["far"] = 9000
    (tmp_path / "tokenizer.json").write_text(json.dumps(content))
    renderer = build_inline(tmp_path)
    assert len(renderer.tokenizer.loaded) < 9000
    assert renderer.tokenizer.vocab_size == 9001
    assert renderer.prompts.render([9000], TextOptions()).token_ids == [9000]
