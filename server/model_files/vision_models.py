"""The vision models that are served with images: those that tests compare with transformers' own `generate`.

Standard library only.
"""

import json
from pathlib import Path
from typing import Final

VISION_MODEL_TYPES: Final = frozenset(
    {"idefics3", "internvl", "llava", "llava_next", "qwen2_5_vl", "qwen2_vl", "smolvlm"}
)
"""Values of `model_type`: the vision tower's output replaces tokens, and the rest is an ordinary causal LM.

Other models need more from their language model: bidirectional attention to images (Gemma 3, PaliGemma),
features that enter deeper layers (Qwen3-VL), cross-attention (Mllama). They are served for text only.
"""


def accepts_images(folder: Path) -> bool:
    """Whether the model in this folder accepts images; False if config.json is missing or broken."""
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        return config["model_type"] in VISION_MODEL_TYPES and "vision_config" in config
    except (OSError, ValueError, KeyError, TypeError):
        return False
