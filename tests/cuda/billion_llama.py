"""A Llama of a billion random weights in bfloat16 for measurements: `python tests/cuda/billion_llama.py TOKENIZER OUT`.

TOKENIZER is the folder of a model with a vocabulary of at most 49152 tokens, such as SmolLM2-135M-Instruct.
"""

import argparse
import shutil
from pathlib import Path

import torch
from transformers import LlamaConfig, LlamaForCausalLM

_TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja")


def save_billion_llama(tokenizer: Path, out: Path, num_layers: int = 16) -> int:
    """Saves it in four shards or more; returns the number of weights."""
    config = LlamaConfig(
        vocab_size=49152,
        hidden_size=2048,
        intermediate_size=8192,
        num_hidden_layers=num_layers,
        num_attention_heads=32,
        num_key_value_heads=8,
        max_position_embeddings=8192,
        tie_word_embeddings=True,
        bos_token_id=1,
        eos_token_id=2,
        dtype="bfloat16",
    )
    torch.manual_seed(0)
    with torch.device("cuda" if torch.cuda.is_available() else "cpu"):
        model = LlamaForCausalLM(config).to(torch.bfloat16)
    model.cpu().save_pretrained(out, max_shard_size="600MB")
    for name in _TOKENIZER_FILES:
        if (tokenizer / name).exists():
            shutil.copy(tokenizer / name, out / name)
    return model.num_parameters()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("tokenizer", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--layers", type=int, default=16)
    options = parser.parse_args()
    print(f"{save_billion_llama(options.tokenizer, options.out, options.layers):,} weights in {options.out}")
