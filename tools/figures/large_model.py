"""Makes a model of 1.5 billion parameters with random weights, so that starts spend time on weights."""

import json
import shutil
from pathlib import Path
from typing import Final

import torch
from safetensors.torch import save_file
from transformers import LlamaConfig, LlamaForCausalLM

_GEOMETRY: Final = {
    "hidden_size": 2048,
    "intermediate_size": 8192,
    "num_hidden_layers": 24,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "head_dim": 64,
}
_DEVIATION: Final = 0.02


def make_large_model(folder: Path, small: Path) -> None:
    """Writes the model in bfloat16, with the tokenizer and other settings of `small`, unless it is there."""
    if folder.exists():
        return
    folder.mkdir(parents=True)
    for file in small.iterdir():
        if file.suffix != ".safetensors":
            shutil.copy(file, folder)
    config = {**json.loads((small / "config.json").read_text()), **_GEOMETRY}
    (folder / "config.json").write_text(json.dumps(config))
    with torch.device("meta"):
        shapes = {name: weight.shape for name, weight in LlamaForCausalLM(LlamaConfig(**config)).named_parameters()}
    torch.manual_seed(0)
    weights = {name: torch.empty(shape, dtype=torch.bfloat16).normal_(0, _DEVIATION) for name, shape in shapes.items()}
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
