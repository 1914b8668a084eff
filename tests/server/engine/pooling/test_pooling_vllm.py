"""Embeddings and scores equal those of vLLM with the same folder and texts, in float32."""

from pathlib import Path

import pytest
import torch
from transformers import AutoTokenizer

from tests.peer_vllm import ask_vllm, needs_vllm
from tests.server.engine.pooling.small_pooling import SmallPooling, assert_close
from tests.server.engine.pooling.tiny_poolers import save_pooler, save_sentence_files

TEXTS = ["hello world", "the capital of france is paris", "the cat sat on the mat and the dog sat on the cat", "a"]
SHAPE = {"hidden_size": 128, "num_attention_heads": 4}
"""vLLM's attention on a CPU needs heads of 32 or more."""


@pytest.mark.slow
@pytest.mark.timeout(900)
@needs_vllm
@pytest.mark.parametrize("kind", ["embed", "score"])
def test_results_equal_those_of_vllm(tmp_path, kind):
    folder = tmp_path / "model"
    folder.mkdir()
    if kind == "embed":
        save_pooler(folder, "bert", **SHAPE)
        save_sentence_files(folder)
    else:
        save_pooler(folder, "bert", "classify", num_labels=1, **SHAPE)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    encoded = [tokenizer(text) for text in TEXTS]
    if kind == "score":
        encoded = [tokenizer(TEXTS[0], text) for text in TEXTS[1:]]
    ours = SmallPooling(folder).run(
        [one["input_ids"] for one in encoded],
        [one["token_type_ids"] for one in encoded],
    )
    answers = ask_vllm(Path(__file__).with_name("vllm_pooling.py"), TEXTS, tmp_path, folder, kind, timeout_s=800)
    assert_close(ours, [torch.tensor(values) for values in answers])
