"""Makes LoRA adapters with peft, with random weights that are not zero. peft's outputs are the reference."""

import copy
import warnings
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import PreTrainedModel

from tests.server.engine.tiny_models import greedy_outputs


def save_adapter(model: PreTrainedModel, folder: Path, *, seed: int = 0, **config: Any) -> Path:
    """Saves an adapter with peft. By default, it has rank 4 and adapts all linear layers."""
    settings = {"r": 4, "lora_alpha": 16, "target_modules": "all-linear", "task_type": "CAUSAL_LM"} | config
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        adapted = get_peft_model(copy.deepcopy(model), LoraConfig(**settings))
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for name, parameter in adapted.named_parameters():
                if "lora_" in name:
                    parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.1)
        adapted.save_pretrained(folder)
    return folder


def adapted_outputs(
    model: PreTrainedModel, folder: Path | None, prompts: list[list[int]], num_tokens: int
) -> list[list[int]]:
    """The outputs of `generate` for each prompt, with the adapter applied by peft, or without an adapter."""
    if folder is None:
        return greedy_outputs(model, prompts, num_tokens)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        adapted = PeftModel.from_pretrained(copy.deepcopy(model), folder).eval()
        return greedy_outputs(adapted.base_model.model, prompts, num_tokens)
