"""The floor of a start: computes the first token of a Llama checkpoint, without server, engine or KV cache.

Runs as `python bare_script.py FOLDER PROMPT` in a fresh interpreter with torch, tokenizers and safetensors.
What a server's start takes beyond this is its overhead. Prints one JSON line: the moment of the token in
monotonic nanoseconds, and its text.
"""

import json
import sys
import time
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from tokenizers import Tokenizer
from torch import Tensor
from torch.nn.functional import embedding, linear, scaled_dot_product_attention, silu

Weights = dict[str, Tensor]


def main(folder: Path, prompt: str) -> None:
    """Prints the greedy first token."""
    config = json.loads((folder / "config.json").read_text())
    if config.get("model_type") != "llama":
        sys.exit(f"the bare script supports models of type llama, {folder} is of type {config.get('model_type')!r}")
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    weights: Weights = {}
    for file in sorted(folder.glob("*.safetensors")):
        weights.update(load_file(file))
    with torch.inference_mode():
        token_id = int(predict(tokenizer.encode(prompt).ids, config, weights))
    text = tokenizer.decode([token_id])
    sys.stdout.write(json.dumps({"token_ns": time.monotonic_ns(), "text": text}) + "\n")


def predict(token_ids: list[int], config: dict[str, Any], weights: Weights) -> Tensor:
    """The most likely next token."""
    embeddings = weights["model.embed_tokens.weight"]
    hidden = embedding(torch.tensor(token_ids), embeddings)
    epsilon = config["rms_norm_eps"]
    rotation = build_rotation(len(token_ids), config, hidden.dtype)
    for layer in range(config["num_hidden_layers"]):
        prefix = f"model.layers.{layer}."
        normed = normalize(hidden, weights[prefix + "input_layernorm.weight"], epsilon)
        hidden = hidden + attend(normed, config, weights, prefix + "self_attn.", rotation)
        normed = normalize(hidden, weights[prefix + "post_attention_layernorm.weight"], epsilon)
        hidden = hidden + transform(normed, weights, prefix + "mlp.")
    last = normalize(hidden[-1], weights["model.norm.weight"], epsilon)
    return linear(last, weights.get("lm_head.weight", embeddings)).argmax()


def attend(
    hidden: Tensor, config: dict[str, Any], weights: Weights, prefix: str, rotation: tuple[Tensor, Tensor]
) -> Tensor:
    """Causal self-attention with grouped heads."""
    num_tokens = hidden.shape[0]
    query, key, value = (
        project(hidden, weights, prefix + name).view(num_tokens, -1, head_size(config)) for name in "qkv"
    )
    query, key = rotate(query, rotation), rotate(key, rotation)
    query, key, value = (part.transpose(0, 1).unsqueeze(0) for part in (query, key, value))
    mixed = scaled_dot_product_attention(query, key, value, is_causal=True, enable_gqa=True)
    return project(mixed[0].transpose(0, 1).reshape(num_tokens, -1), weights, prefix + "o")


def transform(hidden: Tensor, weights: Weights, prefix: str) -> Tensor:
    """The gated feed-forward part."""
    gate = silu(project(hidden, weights, prefix + "gate"))
    return project(gate * project(hidden, weights, prefix + "up"), weights, prefix + "down")


def project(hidden: Tensor, weights: Weights, name: str) -> Tensor:
    """One linear layer, with a bias where the checkpoint has one."""
    return linear(hidden, weights[f"{name}_proj.weight"], weights.get(f"{name}_proj.bias"))


def normalize(hidden: Tensor, weight: Tensor, epsilon: float) -> Tensor:
    """RMS norm, computed in single precision."""
    wide = hidden.float()
    return weight * (wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + epsilon)).to(hidden.dtype)


def build_rotation(num_tokens: int, config: dict[str, Any], dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Cosines and sines of the rotary embedding, [token, 1, dimension]."""
    settings = config.get("rope_parameters") or config.get("rope_scaling") or {}
    kind = settings.get("rope_type", settings.get("type", "default"))
    if kind != "default":
        sys.exit(f"the bare script supports plain rotary embeddings, the model has {kind!r}")
    theta = settings.get("rope_theta", config.get("rope_theta", 10000.0))
    size = head_size(config)
    frequencies = 1.0 / theta ** (torch.arange(0, size, 2, dtype=torch.float32) / size)
    angles = torch.outer(torch.arange(num_tokens, dtype=torch.float32), frequencies)
    angles = torch.cat((angles, angles), dim=-1).unsqueeze(1)
    return angles.cos().to(dtype), angles.sin().to(dtype)


def rotate(heads: Tensor, rotation: tuple[Tensor, Tensor]) -> Tensor:
    """Applies the rotary embedding to [token, head, dimension]."""
    first, second = heads.chunk(2, dim=-1)
    return heads * rotation[0] + torch.cat((-second, first), dim=-1) * rotation[1]


def head_size(config: dict[str, Any]) -> int:
    """Dimensions of one head."""
    return int(config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"])


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
