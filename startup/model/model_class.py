"""Which module of transformers has the class of a model, told from its config.json alone."""

import json
import re
from pathlib import Path


def modeling_module(folder: Path) -> str | None:
    """For example `transformers.models.llama.modeling_llama`; None where the file does not tell.

    Nearly all of transformers' modules are named after the model type. For the others the name leads nowhere, which
    whoever imports it ahead of time has to bear.
    """
    try:
        model_type = json.loads((folder / "config.json").read_text(encoding="utf-8"))["model_type"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    name = str(model_type).replace("-", "_")
    return f"transformers.models.{name}.modeling_{name}" if re.fullmatch(r"[a-z][a-z0-9_]*", name) else None
