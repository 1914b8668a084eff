"""The reproducible prompts of the benchmarks."""

import pytest
from tokenizers import Tokenizer

from vllm_cli.bench.request import build_prompt


def test_the_same_seed_gives_the_same_prompt():
    """In every process: the text is written out here."""
    assert build_prompt(20, seed="a") == "285243: Explain to a child the meaning of money. The money brings the"


def test_prompts_differ_from_their_first_word_on():
    beginnings = [build_prompt(64, seed=str(index))[:40] for index in range(500)]
    assert len(set(beginnings)) == 500


@pytest.mark.parametrize("num_tokens", [8, 16, 64, 400], ids=str)
def test_prompts_have_about_the_requested_length(num_tokens, model_path):
    tokenizer = Tokenizer.from_file(str(model_path / "tokenizer.json"))
    lengths = [len(tokenizer.encode(build_prompt(num_tokens, seed=str(seed))).ids) for seed in range(20)]
    assert num_tokens * 0.85 <= sum(lengths) / 20 <= num_tokens * 1.15
