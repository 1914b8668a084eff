"""Writes small models with random weights, in the architectures and formats that recipes need."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import torch
from safetensors.torch import load_file, save_file

from tests.gpu_stub.gpu_server import MODEL
from tests.server.engine.pooling.tiny_poolers import save_pooler
from tests.support.llamas import TOKENIZER_FILES

_VOCAB: Final = 49152
"""The vocabulary size of SmolLM2."""
_SHAPE: Final[dict[str, Any]] = {
    "vocab_size": _VOCAB + 16,
    "hidden_size": 256,
    "intermediate_size": 512,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 64,
    "max_position_embeddings": 8192,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
"""Sizes that the kernels of all formats accept."""
_GROUP: Final = 128
"""How many weights share a scale."""


def save_adapter(folder: Path) -> None:
    """Writes a LoRA adapter for SmolLM2-135M."""
    settings = json.loads((MODEL / "config.json").read_text())
    hidden, values = settings["hidden_size"], settings["num_key_value_heads"] * settings["head_dim"]
    tensors = {}
    for layer in range(settings["num_hidden_layers"]):
        for name, size in (("q_proj", hidden), ("v_proj", values)):
            prefix = f"base_model.model.model.layers.{layer}.self_attn.{name}"
            tensors[f"{prefix}.lora_A.weight"] = torch.rand(8, hidden)
            tensors[f"{prefix}.lora_B.weight"] = torch.rand(size, 8)
    save_file(tensors, folder / "adapter_model.safetensors")
    adapter = {"peft_type": "LORA", "task_type": "CAUSAL_LM", "r": 8, "lora_alpha": 16, "bias": "none"}
    _write(folder / "adapter_config.json", adapter | {"target_modules": ["q_proj", "v_proj"]})


def save_llama(folder: Path, vocab_size: int = _VOCAB) -> None:
    """Writes a Llama, by default with the vocabulary size of SmolLM2, so that it can draft tokens for it."""
    _save(folder, "llama", "LlamaForCausalLM", _SHAPE | {"vocab_size": vocab_size})
    _copy_tokenizer(folder)


def save_awq(folder: Path) -> None:
    """Writes a Llama with four bits per weight, in AutoAWQ's format: integers with scales and zeros."""
    save_llama(folder)
    tensors = load_file(folder / "model.safetensors")
    for name in [name for name in tensors if name.endswith("_proj.weight")]:
        columns, rows = tensors.pop(name).shape
        layer = name.removesuffix("weight")
        tensors[f"{layer}qweight"] = _integers(rows, columns // 8)
        tensors[f"{layer}qzeros"] = _integers(rows // _GROUP, columns // 8)
        tensors[f"{layer}scales"] = torch.rand(rows // _GROUP, columns).half()
    save_file(tensors, folder / "model.safetensors")
    settings = {"quant_method": "awq", "bits": 4, "group_size": _GROUP, "zero_point": True, "version": "gemm"}
    config = json.loads((folder / "config.json").read_text())
    _write(folder / "config.json", config | {"dtype": "float16", "quantization_config": settings})


def save_qwen3(folder: Path) -> None:
    """Writes a Qwen3 whose tokenizer has the markers of reasoning and tool calls."""
    _save(folder, "qwen3", "Qwen3ForCausalLM", _SHAPE)
    _save_tokenizer(folder, "<think>", "</think>", "<tool_call>", "</tool_call>")


def save_experts(folder: Path) -> None:
    """Writes a Qwen3 with a mixture of four experts."""
    experts = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 128}
    _save(folder, "qwen3_moe", "Qwen3MoeForCausalLM", _SHAPE | experts)
    _copy_tokenizer(folder)


def save_llava(folder: Path) -> None:
    """Writes a LLaVA model for images of 56 x 56 pixels."""
    from transformers import CLIPImageProcessorPil, CLIPVisionConfig, LlamaConfig, LlavaProcessor

    tokenizer = _save_tokenizer(folder, "<image>")
    vision = CLIPVisionConfig(
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=2,
        image_size=56,
        patch_size=14,
        projection_dim=64,
    )
    config = {
        "vision_config": vision,
        "text_config": LlamaConfig(**_SHAPE),
        "image_token_index": tokenizer.convert_tokens_to_ids("<image>"),
    }
    _save(folder, "llava", "LlavaForConditionalGeneration", config)
    size = {"size": {"shortest_edge": 56}, "crop_size": {"height": 56, "width": 56}}
    LlavaProcessor(
        CLIPImageProcessorPil(**size),
        tokenizer,
        patch_size=14,
        vision_feature_select_strategy="default",
        chat_template=tokenizer.chat_template,
        num_additional_image_tokens=1,
    ).save_pretrained(folder)


def save_embedder(folder: Path) -> None:
    """Writes a Qwen3 without a head."""
    save_pooler(folder, "qwen3", hidden_size=128, head_dim=32)


WRITERS: Final[dict[str, Callable[[Path], None]]] = {
    name.removeprefix("save_"): write
    for name, write in globals().copy().items()
    if name.startswith("save_") and name not in ("save_file", "save_pooler")
}
"""Name of a model -> the function that writes it."""


def _save(folder: Path, model_type: str, class_name: str, config: dict[str, Any]) -> None:
    import transformers

    torch.manual_seed(0)
    model = getattr(transformers, class_name)(transformers.CONFIG_MAPPING[model_type](**config))
    model.bfloat16().save_pretrained(folder)


def _save_tokenizer(folder: Path, *words: str) -> Any:
    """Writes SmolLM2's tokenizer with these words as further special tokens."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(MODEL)
    tokenizer.add_tokens(list(words), special_tokens=True)
    tokenizer.save_pretrained(folder)
    return tokenizer


def _copy_tokenizer(folder: Path) -> None:
    for name in TOKENIZER_FILES:
        shutil.copyfile(MODEL / name, folder / name)


def _integers(rows: int, columns: int) -> torch.Tensor:
    return torch.randint(0, 2**31 - 1, (rows, columns), dtype=torch.int32)


def _write(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content))
