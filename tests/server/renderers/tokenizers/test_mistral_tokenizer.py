"""Mistral's tokenizers, compared with mistral-common itself, and the choice of the file."""

from collections.abc import Callable

import pytest
from mistral_common.tokens.tokenizers.base import SpecialTokenPolicy

from base.errors import RequestError
from server.renderers.mistral import MistralRenderer
from server.renderers.prompts import TextOptions
from server.renderers.tokenizers.files import TokenizerLoadError, find_mistral_file, is_mistral_format
from server.renderers.tokenizers.mistral_tokenizer import MistralTokenizer
from tests.server.renderers.detokenizing import TEXTS, encode, feed

Build = Callable[[str], MistralRenderer]


def decode(renderer: MistralRenderer, token_ids: list[int], *, skip_special_tokens: bool = True) -> str:
    return renderer.tokenizer.decode(token_ids, skip_special_tokens=skip_special_tokens)


def named(renderer: MistralRenderer, name: str) -> int:
    return next(token_id for token_id, token in renderer.tokenizer.added_tokens.items() if token == name)


@pytest.mark.parametrize("text", TEXTS)
def test_text_encodes_and_decodes_as_with_mistral_common(mistral, text):
    raw = mistral._mistral.loaded.instruct_tokenizer.tokenizer
    for bos in (True, False):
        expected = raw.encode(text, bos=bos, eos=False)
        prompt = mistral.render_text(text, TextOptions(add_special_tokens=bos))
        assert (prompt.token_ids, prompt.text) == (expected, text)
        assert mistral.detokenize(expected, True) == raw.decode(expected, SpecialTokenPolicy.IGNORE) == text
        assert mistral.detokenize(expected) == "<s>" * bos + text


def test_special_tokens_in_a_text_are_encoded_as_text(mistral):
    assert not set(encode(mistral, "</s><s>[INST][TOOL_CALLS]")) & mistral.tokenizer.added_tokens.keys()


def test_tokens_have_the_bytes_of_the_text(mistral, mistral_kind):
    before = "" if "tekken" in mistral_kind else " "
    for text in TEXTS:
        assert b"".join(map(mistral.token_bytes, encode(mistral, text))) == (before + text).encode()


def test_tokenizer_properties(build_mistral, mistral):
    assert mistral.token_bytes(mistral.eos_token_id or 0) == b"</s>"
    assert (build_mistral("v1").vocab_size, build_mistral("v3").vocab_size) == (32000, 32768)
    tekken = build_mistral("tekken_v3")
    assert (tekken.vocab_size, tekken.eos_token_id, len(tekken.tokenizer.added_tokens)) == (131072, 2, 1000)


def test_more_spaces_than_tekken_can_encode_are_rejected(build_mistral):
    with pytest.raises(RequestError, match="cannot be tokenized"):
        build_mistral("tekken_v3").render_text("x" + " " * 1_100_000 + "x", TextOptions())


def test_special_tokens_are_skipped_except_those_that_delimit_calls_and_reasoning(mistral):
    names = ("[THINK]", "[/THINK]", "[TOOL_CALLS]", "[ARGS]", "[INST]", "</s>")
    known = [name for name in names if name in mistral.tokenizer.added_tokens.values()]
    token_ids = [part for name in known for part in (named(mistral, name), *encode(mistral, "a b"))]
    everything = "".join(f"{name}a b" for name in known)
    skipped = everything.replace("</s>", "").replace("[INST]", "")
    expected = decode(mistral, token_ids)
    assert expected.replace(" a", "a") == skipped
    assert feed(mistral.create_detokenizer(), token_ids) == expected
    written = mistral.create_detokenizer(skip_special_tokens=False)
    assert feed(written, token_ids) == mistral.detokenize(token_ids) == everything


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["tekken.json", "tekken_240911.json", "tokenizer.model.v7"], "tekken.json"),
        (["tekken_240718.json", "tekken_240911.json", "tokenizer.model.v7"], "tekken_240911.json"),
        (["tokenizer.model", "tokenizer.model.v3"], "tokenizer.model.v3"),
        (["tokenizer.model.v3", "tokenizer.model.v11", "tokenizer.model.v7m1"], "tokenizer.model.v11"),
        (["tokenizer.model.v7", "tokenizer.model.v7m1"], "tokenizer.model.v7m1"),
        (
            ["mistral_instruct_tokenizer_240216.model.v2", "tokenizer.model"],
            "mistral_instruct_tokenizer_240216.model.v2",
        ),
        (["tokenizer.json", "tokenizer.model", "config.json"], "tokenizer.model"),
        (["tokenizer.json", "spiece.model", "tekken.txt", "tokenizer.model.v3.bak"], None),
        ([], None),
    ],
)
def test_the_newest_file_is_used(names, expected, tmp_path):
    for name in names:
        (tmp_path / name).touch()
    found = find_mistral_file(tmp_path)
    assert (found and found.name) == expected


def test_the_path_may_be_the_file_itself(mistral_folders, tmp_path):
    file = mistral_folders["v3"] / "mistral_instruct_tokenizer_240323.model.v3"
    assert find_mistral_file(file) == file
    assert MistralTokenizer.from_folder(file).version == 3
    assert find_mistral_file(tmp_path / "no.model.v3") is None


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["consolidated.safetensors", "tekken.json"], True),
        (["consolidated-00001-of-00002.safetensors", "tokenizer.model.v3"], True),
        (["consolidated.safetensors", "tokenizer.model"], False),
        (["consolidated.00.pth", "tekken.json"], False),
        (["model.safetensors", "tekken.json"], False),
    ],
)
def test_mistral_s_own_releases_are_recognized(names, expected, tmp_path):
    for name in names:
        (tmp_path / name).touch()
    assert is_mistral_format(tmp_path) is expected


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        (None, "", "no tekken.json, no tokenizer.model"),
        ("tekken.json", "{", "tekken.json: "),
        ("tekken.json", "{}", "tekken.json: "),
        ("tekken.json", '{"config": {"version": "v99"}}', "v99"),
        ("tokenizer.model.v3", "no model", "tokenizer.model.v3: "),
        ("tokenizer.model.v99", "", "tokenizer.model.v99: "),
    ],
)
def test_a_missing_or_broken_file_fails_the_start(name, content, words, tmp_path):
    if name is not None:
        (tmp_path / name).write_text(content)
    with pytest.raises(TokenizerLoadError, match=words) as raised:
        MistralTokenizer.from_folder(tmp_path)
    assert str(tmp_path) in str(raised.value)
    assert "\n" not in str(raised.value)
