"""Finds the modules that implement a model in vLLM."""

import importlib
import json
from contextlib import suppress
from pathlib import Path

from startup.hooks.left_out import applies
from startup.hooks.of_vllm import MODEL_MODULES, MODEL_REGISTRY


def model_modules(model: Path) -> list[str]:
    """vLLM's modules for the architectures in the model's config.json; empty for an unknown model."""
    if not applies(MODEL_MODULES):
        return []
    with suppress(OSError, ValueError, LookupError, TypeError, AttributeError, ImportError):
        config = json.loads((model / "config.json").read_bytes())
        known = MODEL_REGISTRY.get(importlib.import_module(MODEL_REGISTRY.module)).models
        return [known[name].module_name for name in config["architectures"] if name in known]
    return []
