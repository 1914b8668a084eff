"""Grok-2's tokenizer, compared with tiktoken with the same vocabulary."""

import json
from pathlib import Path
from typing import Any

import pytest

from server.renderers.tokenizers import grok2_tokenizer
from server.renderers.tokenizers.files import TokenizerLoadError, find_grok2_file
from server.renderers.tokenizers.grok2_tokenizer import _WORD_SPLIT_V1, Grok2Tokenizer
from tests.server.renderers.grok2_folder import SPECIAL, WORD_PATTERN, reference, save_grok2, tok_file

TEXTS = [
    "Human: the quick brown fox's dog<|separator|>\n\nAssistant:",
    "  lead\n\n\ttabs  \r\n x ** 2 = 1234567 !!!\n",
    "😀 你好 Größe e\u0301 Быстрая",
    "<|pad|><|eos|><|control1|><|control704|><|reserved_3|><|control705|><|unknown|>",
    "<|hidden|> is no token in a text",
    "\x00\u200b",
    "",
]


@pytest.fixture(scope="module")
def tokenizer(grok2_folder: Path) -> Grok2Tokenizer:
    return Grok2Tokenizer.from_folder(grok2_folder)


def encode(tokenizer: Grok2Tokenizer, text: str, limit: int | None = None) -> list[int]:
    return tokenizer.encode(text, add_special_tokens=True, limit=limit)


@pytest.mark.parametrize("text", TEXTS)
def test_a_text_is_encoded_as_with_tiktoken(tokenizer: Grok2Tokenizer, text: str) -> None:
    known = set(SPECIAL) - {"<|hidden|>"}
    expected = reference().encode(text, allowed_special=known, disallowed_special=())
    assert encode(tokenizer, text) == expected
    assert tokenizer.encode(text, add_special_tokens=False) == expected
    assert tokenizer.decode(expected, skip_special_tokens=False) == text == reference().decode(expected)


def test_special_tokens_can_be_skipped(tokenizer: Grok2Tokenizer) -> None:
    token_ids = encode(tokenizer, "the<|separator|> dog<|eos|>")
    assert tokenizer.decode(token_ids, skip_special_tokens=True) == "the dog"
    assert tokenizer.loop_decoder(skip_special_tokens=True)(token_ids) == "the dog"
    assert tokenizer.loop_decoder(skip_special_tokens=False)(token_ids) == "the<|separator|> dog<|eos|>"


def test_the_file_may_allow_more_special_tokens(tmp_path: Path) -> None:
    path = save_grok2(tmp_path / "more", default_allowed_special=[list(b"<|hidden|>")])
    assert encode(Grok2Tokenizer.from_folder(path), "<|hidden|>") == [SPECIAL.index("<|hidden|>")]


def test_the_file_may_define_its_own_pattern(tmp_path: Path) -> None:
    path = save_grok2(tmp_path / "letters", pat_str=r"[\s\S]")
    assert encode(Grok2Tokenizer.from_folder(path), "the") == [len(SPECIAL) + byte for byte in b"the"]


@pytest.mark.parametrize("space", [" ", "\t\n "])
def test_a_million_spaces_are_encoded(tokenizer: Grok2Tokenizer, space: str) -> None:
    text = "<|eos|>the" + space * (1_200_000 // len(space)) + "dog"
    token_ids = encode(tokenizer, text)
    assert token_ids[0] == SPECIAL.index("<|eos|>")
    assert tokenizer.decode(token_ids, skip_special_tokens=False) == text


def test_a_text_that_cannot_be_split_fails(tokenizer: Grok2Tokenizer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(grok2_tokenizer, "_MOST_SPACES", 2_000_000)
    with pytest.raises(ValueError, match="[Rr]egex"):
        encode(tokenizer, " " * 1_200_000 + "x")


def test_every_token_has_its_exact_bytes(tokenizer: Grok2Tokenizer) -> None:
    expected = reference()
    for token_id in range(tokenizer.vocab_size):
        assert tokenizer.token_bytes(token_id) == expected.decode_single_token_bytes(token_id)
    text = TEXTS[2]
    assert b"".join(map(tokenizer.token_bytes, encode(tokenizer, text))) == text.encode()


def test_tokenizer_properties(tokenizer: Grok2Tokenizer) -> None:
    assert tokenizer.vocab_size == reference().n_vocab == tok_file()["vocab_size"]
    assert tokenizer.eos_token_id == 2
    assert tokenizer.added_tokens == dict(enumerate(SPECIAL))
    assert tokenizer.max_token_chars >= len("<|control704|>")


def test_a_vocabulary_without_special_tokens_has_no_end(tmp_path: Path) -> None:
    tokens = tok_file()["regular_tokens"]
    tokenizer = Grok2Tokenizer.from_folder(save_grok2(tmp_path / "plain", special_tokens=None, vocab_size=None))
    assert tokenizer.eos_token_id is None
    assert tokenizer.vocab_size == len(tokens) + len(SPECIAL)
    assert tokenizer.decode(encode(tokenizer, "<|eos|>"), skip_special_tokens=True) == "<|eos|>"
    assert tokenizer.token_bytes(0) == b""


def test_the_file_is_found_by_its_name(grok2_folder: Path, tmp_path: Path) -> None:
    file = grok2_folder / "tokenizer.tok.json"
    assert find_grok2_file(grok2_folder) == find_grok2_file(file) == file
    assert find_grok2_file(tmp_path) is None
    assert find_grok2_file(tmp_path / "nowhere.tok.json") is None
    assert Grok2Tokenizer.from_folder(file).vocab_size == reference().n_vocab


def repeated(key: str, token: dict[str, Any]) -> dict[str, Any]:
    return {key: [*tok_file()[key], token]}


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"regular_tokens": None}, "regular_tokens"),
        ({"regular_tokens": [{"bytes": [256], "token": 1}]}, r"\$.regular_tokens\[0\].bytes\[0\]"),
        ({"regular_tokens": [{"bytes": "a", "token": 1}]}, r"\$.regular_tokens\[0\].bytes"),
        ({"regular_tokens": [{"bytes": [97], "token": -1}]}, r"\$.regular_tokens\[0\].token"),
        ({"regular_tokens": tok_file()["regular_tokens"][1:], "vocab_size": None}, "0x00 is missing"),
        (repeated("regular_tokens", {"bytes": [97], "token": 9999}), "the id or bytes of another token"),
        (repeated("special_tokens", {"bytes": [97], "token": 9}), "the id or bytes of another token"),
        (repeated("special_tokens", {"bytes": [255], "token": 9999}), "utf-8"),
        ({"vocab_size": 12}, "vocab_size is 12"),
        ({"word_split": "V2"}, "word_split must be 'V1', got 'V2'"),
        ({"word_split": None}, "word_split"),
        ({"pat_str": "("}, "[Rr]egex|[Pp]arsing"),
    ],
)
def test_a_broken_file_is_one_clear_line(tmp_path: Path, changes: dict[str, Any], reason: str) -> None:
    path = save_grok2(tmp_path / "broken", **changes)
    with pytest.raises(TokenizerLoadError, match=reason) as raised:
        Grok2Tokenizer.from_folder(path)
    assert str(path) in str(raised.value)
    assert "\n" not in str(raised.value)


def test_a_missing_file_is_one_clear_line(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text("{}")
    for path in (tmp_path, tmp_path / "nowhere"):
        with pytest.raises(TokenizerLoadError, match="there is no tokenizer.tok.json"):
            Grok2Tokenizer.from_folder(path)
    (tmp_path / "tokenizer.tok.json").write_text("{oops")
    with pytest.raises(TokenizerLoadError, match="malformed"):
        Grok2Tokenizer.from_folder(tmp_path)


def test_a_broken_tokenizer_config_is_one_clear_line(tmp_path: Path) -> None:
    path = save_grok2(tmp_path / "grok-2")
    for content in ("{oops", json.dumps({"chat_template": ["x"]})):
        (path / "tokenizer_config.json").write_text(content)
        with pytest.raises(TokenizerLoadError, match=r"tokenizer_config\.json"):
            Grok2Tokenizer.from_folder(path)


def test_the_word_pattern_matches_v1() -> None:
    assert _WORD_SPLIT_V1 == WORD_PATTERN
