"""Makes models with random weights that are so large that starts spend time on weights."""

import json
import shutil
from pathlib import Path
from typing import Final

import torch
from safetensors.torch import save_file
from transformers import LlamaConfig, LlamaForCausalLM

_SHAPE: Final = ("hidden_size", "intermediate_size", "num_hidden_layers", "head_dim")
_SHAPES: Final = {"1.5b": (2048, 8192, 24, 64), "8b": (4096, 14336, 36, 128)}
_HEADS: Final = {"num_attention_heads": 32, "num_key_value_heads": 8}
_DEVIATION: Final = 0.02


def make_large_model(folder: Path, small: Path) -> None:
    """Writes the model in bfloat16, with the tokenizer and other settings of `small`, unless it is there.

    The folder's name is the number of parameters: `1.5b` or `8b`.
    """
    if folder.exists():
        return
    folder.mkdir(parents=True)
    for file in small.iterdir():
        if file.suffix != ".safetensors":
            shutil.copy(file, folder)
    shape = dict(zip(_SHAPE, _SHAPES[folder.name], strict=True))
    config = {**json.loads((small / "config.json").read_text()), **_HEADS, **shape}
    (folder / "config.json").write_text(json.dumps(config))
    with torch.device("meta"):
        shapes = {name: weight.shape for name, weight in LlamaForCausalLM(LlamaConfig(**config)).named_parameters()}
    torch.manual_seed(0)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    weights = {
        name: torch.empty(shape, dtype=torch.bfloat16, device=device).normal_(0, _DEVIATION).cpu()
        for name, shape in shapes.items()
    }
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
