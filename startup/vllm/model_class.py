"""Imports the module of a model's class in vLLM, found by the name that the model's configuration gives."""

import importlib
import json
from contextlib import suppress
from pathlib import Path


def import_model_class(model: Path) -> dict[str, str]:
    """Returns what could not be imported, with the reason; a model that vLLM does not know is none of it."""
    names: list[str] = []
    with suppress(OSError, ValueError, LookupError, TypeError, AttributeError, ImportError):
        config = json.loads((model / "config.json").read_bytes())
        registry = importlib.import_module("vllm.model_executor.models.registry")
        known = registry.ModelRegistry.models
        names = [known[name].module_name for name in config["architectures"] if name in known]
    failed = {}
    for name in names:
        try:
            importlib.import_module(name)
        except Exception as err:  # noqa: BLE001 - loading the model will tell
            failed[name] = f"{type(err).__name__}: {err}"
    return failed
