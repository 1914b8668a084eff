"""Which models see images: the ones that tests hold against transformers' own `generate`. Standard library only."""

import json
from pathlib import Path
from typing import Final

VISION_MODEL_TYPES: Final = frozenset(
    {"idefics3", "internvl", "llava", "llava_next", "qwen2_5_vl", "qwen2_vl", "smolvlm"}
)
"""Values of `model_type`: a vision tower's output takes the place of tokens, and the rest is a causal LM as any other.

Other models need more of their language model: images that are attended to in both directions (Gemma 3,
PaliGemma), features that enter deeper layers (Qwen3-VL), cross-attention (Mllama). They are served for text only.
"""


def accepts_images(folder: Path) -> bool:
    """Whether the model in this folder takes images; False where config.json does not tell."""
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        return config["model_type"] in VISION_MODEL_TYPES and "vision_config" in config
    except (OSError, ValueError, KeyError, TypeError):
        return False
