"""Which module of vLLM's has the class of a model, found by the name that the model's configuration gives."""

import importlib
import json
from contextlib import suppress
from pathlib import Path


def model_modules(model: Path) -> list[str]:
    """Empty for a model that vLLM does not know: loading it will tell."""
    with suppress(OSError, ValueError, LookupError, TypeError, AttributeError, ImportError):
        config = json.loads((model / "config.json").read_bytes())
        registry = importlib.import_module("vllm.model_executor.models.registry")
        known = registry.ModelRegistry.models
        return [known[name].module_name for name in config["architectures"] if name in known]
    return []
