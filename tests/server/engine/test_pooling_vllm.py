"""Embeddings and scores are vLLM's: it reads the same folder, tokenizes the same texts and computes in float32."""

import json
import subprocess
from pathlib import Path

import pytest
import torch
from transformers import AutoTokenizer

from tests.server.engine.small_pooling import SmallPooling, assert_close
from tests.server.engine.tiny_poolers import save_pooler, save_sentence_files

VLLM_PYTHON = Path(__file__).parents[3] / ".peers" / "vllm" / "bin" / "python"
TEXTS = ["hello world", "the capital of france is paris", "the cat sat on the mat and the dog sat on the cat", "a"]
SHAPE = {"hidden_size": 128, "num_attention_heads": 4}
"""vLLM's attention on CPU wants heads of 32 or more."""


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.skipif(not VLLM_PYTHON.exists(), reason="vLLM is not installed in .peers/vllm")
@pytest.mark.parametrize("kind", ["embed", "score"])
def test_numbers_are_vllm_s(tmp_path: Path, kind: str) -> None:
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
    assert_close(ours, _ask_vllm(folder, kind, tmp_path))


def _ask_vllm(folder: Path, kind: str, tmp_path: Path) -> list[torch.Tensor]:
    asked, answered = tmp_path / "asked.json", tmp_path / "answered.json"
    asked.write_text(json.dumps(TEXTS))
    script = Path(__file__).with_name("vllm_pooling.py")
    done = subprocess.run(
        [VLLM_PYTHON, script, folder, kind, asked, answered], capture_output=True, text=True, timeout=800, cwd=tmp_path
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return [torch.tensor(values) for values in json.loads(answered.read_text())]
