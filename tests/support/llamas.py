"""Writes folders of Llama models with random weights.

`tiny` loads in a second and has a token for each byte. `small` can be split between two ranks. `billion` is
for measurements on a GPU. `python -m tests.support.llamas TOKENIZER OUT` writes `billion`.
"""

import argparse
import json
import shutil
from pathlib import Path
from typing import Any, Final

from tests.server.engine.sampling.byte_tokenizer import EOS, VOCAB_SIZE, save_byte_tokenizer

TOKENIZER_FILES: Final = ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja")
_SMOL_VOCAB_SIZE: Final = 49152
_CHAT_TEMPLATE: Final = (
    "{% if tools %}tools: {{ tools | tojson }}\n{% endif %}"
    "{% for message in messages %}{{ message.role }}: {{ message.content }}\n{% endfor %}"
    "{% if add_generation_prompt %}assistant: {% endif %}"
)


def save_tiny_llama(folder: Path) -> Path:
    """Writes a model of a few kilobytes with a byte tokenizer and a chat template."""
    _save(
        folder,
        vocab_size=VOCAB_SIZE,
        hidden_size=32,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=4096,
        bos_token_id=EOS,
        eos_token_id=EOS,
    )
    save_byte_tokenizer(folder)
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "<end>", "chat_template": _CHAT_TEMPLATE}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    return folder


def save_small_llama(folder: Path, tokenizer: Path) -> Path:
    """Writes a model of a few megabytes that two ranks can share, unlike SmolLM2 with its nine heads.

    The model's logits are so far apart that rounding changes no greedy token.
    """
    _save(
        folder,
        hidden_size=128,
        intermediate_size=256,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=32,
        max_position_embeddings=512,
        initializer_range=0.4,
    )
    return _copy_tokenizer(tokenizer, folder)


def save_billion_llama(folder: Path, tokenizer: Path) -> Path:
    """Writes a model with 1.1 billion weights in bfloat16, in shards of 600 MB."""
    import torch

    _save(
        folder,
        device="cuda" if torch.cuda.is_available() else "cpu",
        hidden_size=2048,
        intermediate_size=8192,
        num_hidden_layers=16,
        num_attention_heads=32,
        num_key_value_heads=8,
        max_position_embeddings=8192,
        tie_word_embeddings=True,
        dtype="bfloat16",
    )
    return _copy_tokenizer(tokenizer, folder)


def _save(folder: Path, *, dtype: str = "float32", device: str = "cpu", **shape: Any) -> None:
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    others = {"vocab_size": _SMOL_VOCAB_SIZE, "bos_token_id": 1, "eos_token_id": 2}
    torch.manual_seed(0)
    with torch.device(device):
        model = LlamaForCausalLM(LlamaConfig(**others | shape, dtype=dtype)).to(getattr(torch, dtype))
    model.cpu().save_pretrained(folder, max_shard_size="600MB")


def _copy_tokenizer(tokenizer: Path, folder: Path) -> Path:
    """Copies the tokenizer of a model with at most 49152 tokens, such as SmolLM2-135M-Instruct."""
    for name in TOKENIZER_FILES:
        if (tokenizer / name).exists():
            shutil.copyfile(tokenizer / name, folder / name)
    return folder


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tokenizer", type=Path)
    parser.add_argument("out", type=Path)
    options = parser.parse_args()
    print(save_billion_llama(options.out, options.tokenizer))
