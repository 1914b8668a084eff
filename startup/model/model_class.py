"""Finds the module of transformers that contains a model's class, from config.json only."""

import json
import re
from pathlib import Path


def modeling_module(folder: Path) -> str | None:
    """The name, such as `transformers.models.llama.modeling_llama`; None without a usable model type.

    Nearly all modules of transformers are named after the model type. For the others the returned module does
    not exist, so callers must expect that its import fails.
    """
    try:
        model_type = json.loads((folder / "config.json").read_text(encoding="utf-8"))["model_type"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    name = str(model_type).replace("-", "_")
    return f"transformers.models.{name}.modeling_{name}" if re.fullmatch(r"[a-z][a-z0-9_]*", name) else None
