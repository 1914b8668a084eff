"""The conversion of the default model's GGUF file."""

import json
import struct
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tokenizers import Tokenizer

from startup.files.model import gguf_conversion
from startup.files.model.checkpoint_folder import model_problem
from tests.support.gguf_file import GgufTensor, write_gguf

HIDDEN, HEADS, KV_HEADS, VOCAB = 64, 2, 1, 4
F32, Q4_1, Q8_0 = 0, 3, 8


def _floats(*shape: int) -> GgufTensor:
    """A tensor whose rows are numbered from 0."""
    values = torch.arange(shape[0]).repeat_interleave(shape[1] if len(shape) > 1 else 1)
    return GgufTensor(shape, F32, values.float().numpy().tobytes())


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """A Llama with one layer. Its embeddings are of type Q8_0, a layer's projection of type Q4_1."""
    q8 = struct.pack("<e32b", 0.5, *range(-16, 16)) * (VOCAB * HIDDEN // 32)
    q4 = struct.pack("<ee16B", 2.0, -1.0, *(low | (15 - low) << 4 for low in range(16))) * (HIDDEN * HIDDEN // 32)
    square = _floats(HIDDEN, HIDDEN)
    layer = {
        "attn_norm": _floats(HIDDEN),
        "attn_q": square,
        "attn_k": _floats(HIDDEN // 2, HIDDEN),
        "attn_v": _floats(HIDDEN // 2, HIDDEN),
        "attn_output": square,
        "ffn_norm": _floats(HIDDEN),
        "ffn_gate": square,
        "ffn_up": square,
        "ffn_down": GgufTensor((HIDDEN, HIDDEN), Q4_1, q4),
    }
    return write_gguf(
        tmp_path / "model.gguf",
        {
            "token_embd.weight": GgufTensor((VOCAB, HIDDEN), Q8_0, q8),
            **{f"blk.0.{name}.weight": tensor for name, tensor in layer.items()},
            "output_norm.weight": _floats(HIDDEN),
        },
        llama__vocab_size=VOCAB,
        llama__embedding_length=HIDDEN,
        llama__feed_forward_length=HIDDEN,
        llama__block_count=1,
        llama__attention__head_count=HEADS,
        llama__attention__head_count_kv=KV_HEADS,
        llama__attention__layer_norm_rms_epsilon=1e-5,
        llama__context_length=128,
        llama__rope__freq_base=1e4,
        tokenizer__ggml__tokens=["<end>", "a", "b", "ab"],
        tokenizer__ggml__token_type=[3, 1, 1, 1],
        tokenizer__ggml__merges=["a b"],
        tokenizer__ggml__bos_token_id=0,
        tokenizer__ggml__eos_token_id=0,
        tokenizer__ggml__padding_token_id=0,
        tokenizer__ggml__unknown_token_id=0,
        tokenizer__chat_template="{{ messages }}",
    )


def test_each_type_becomes_bfloat16_and_heads_have_the_order_of_transformers(source, tmp_path):
    gguf_conversion.convert(source, tmp_path / "model")
    weights = load_file(tmp_path / "model" / "model.safetensors")
    assert {tensor.dtype for tensor in weights.values()} == {torch.bfloat16}
    assert weights["model.embed_tokens.weight"][3, :32].tolist() == [number / 2 for number in range(-16, 16)]
    of_block = [2.0 * number - 1.0 for number in (*range(16), *range(15, -1, -1))]
    assert weights["model.layers.0.mlp.down_proj.weight"][0].tolist() == of_block * 2
    halves = [*range(0, 32, 2), *range(1, 32, 2)]
    rows = {name: weights[f"model.layers.0.self_attn.{name}_proj.weight"][:, 0].tolist() for name in "qkv"}
    assert rows == {"q": [*halves, *(32 + row for row in halves)], "k": halves, "v": [*range(32)]}


@pytest.mark.thorough
def test_the_folder_is_a_model_with_its_tokenizer(source, tmp_path):
    """The conversion is a script that imports neither torch nor transformers."""
    arguments = [sys.executable, "-X", "importtime", "-P", gguf_conversion.__file__, source, tmp_path / "model"]
    done = subprocess.run(arguments, check=True, capture_output=True, text=True)
    assert not {"torch", "transformers"} & {line.rpartition("|")[2].strip() for line in done.stderr.splitlines()}
    assert model_problem(tmp_path / "model") is None
    config = json.loads((tmp_path / "model" / "config.json").read_text())
    assert (config["model_type"], config["num_key_value_heads"], config["eos_token_id"]) == ("llama", KV_HEADS, 0)
    tokenizer = Tokenizer.from_file(str(tmp_path / "model" / "tokenizer.json"))
    assert tokenizer.encode("ab<end>a").ids == [3, 0, 1]
    assert (tmp_path / "model" / "chat_template.jinja").read_text() == "{{ messages }}"
