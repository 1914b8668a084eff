"""Copies of tokenizers that share the vocabulary encode like the original, also at the same time."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from tokenizers import AddedToken, Tokenizer
from tokenizers.models import BPE

from server.renderers.tokenizers.hf_tokenizer import copy_backend, copy_tokenizer
from server.renderers.tokenizers.loading import load_tokenizer

TEXT = "  Größe 你好 😀 <|im_start|> </s> x"


@pytest.fixture(params=["real", "byte_level", "llama", "unigram", "wordpiece"])
def tokenizer_path(request: pytest.FixtureRequest, tokenizer_folders: dict[str, Path]) -> Path:
    return tokenizer_folders[request.param]


def test_a_copy_equals_the_original(tokenizer_path: Path) -> None:
    tokenizer = load_tokenizer(tokenizer_path)
    tokenizer.backend_tokenizer.enable_truncation(5, direction="left")
    tokenizer.backend_tokenizer.enable_padding(length=9)
    copied = copy_tokenizer(tokenizer)
    assert type(copied) is type(tokenizer)
    assert copied.backend_tokenizer.to_str() == tokenizer.backend_tokenizer.to_str()
    assert copied.special_tokens_map == tokenizer.special_tokens_map
    assert copied.encode(TEXT) == tokenizer.encode(TEXT)


def test_truncation_and_padding_of_a_copy_are_its_own(tokenizer_path: Path) -> None:
    tokenizer = load_tokenizer(tokenizer_path)
    whole = tokenizer.encode(TEXT)
    copied = copy_tokenizer(tokenizer)
    assert len(copied.encode(TEXT, truncation=True, max_length=3)) == 3
    copied.backend_tokenizer.enable_padding(length=99)
    assert tokenizer.encode(TEXT) == whole


def test_copies_encode_at_the_same_time(tokenizer_path: Path) -> None:
    tokenizer = load_tokenizer(tokenizer_path)
    texts = [f"{number} {TEXT * 20}" for number in range(50)]
    expected = [tokenizer.encode(text) for text in texts]

    def encode_all(_: int) -> list[list[int]]:
        own = copy_tokenizer(tokenizer)
        return [own.encode(text, truncation=True, max_length=10_000) for text in texts]

    with ThreadPoolExecutor(4) as pool:
        assert all(result == expected for result in pool.map(encode_all, range(4)))


def test_added_tokens_whose_ids_would_change_are_copied_with_the_vocabulary() -> None:
    backend = Tokenizer(BPE({"a": 0, "b": 1, "ab": 2}, [("a", "b")]))
    backend.add_tokens([AddedToken("<x>")])
    content = backend.to_str().replace('"id":3', '"id":7')
    odd = Tokenizer.from_str(content)
    assert copy_backend(odd).get_added_tokens_decoder().keys() == odd.get_added_tokens_decoder().keys()
