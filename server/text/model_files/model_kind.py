"""Decides from a model's files whether the model generates or pools, and whether it accepts images.

The rules are vLLM's. The module needs only the standard library.
"""

from pathlib import Path
from typing import Any, Final, Literal, NamedTuple

from server.terms.config import EngineConfig
from server.text.model_files.sentence_files import read_object, read_sentence_files

Runner = Literal["generate", "pooling"]
Head = Literal["none", "embed", "classify", "token_classify", "colbert"]


class ModelKind(NamedTuple):
    """Whether a model generates text or pools, and the layers after its transformer."""

    runner: Runner
    head: Head
    """The layers that a pooling model has after the transformer."""

    @property
    def is_pooling(self) -> bool:
        """Whether the model returns numbers instead of text. Such a model needs no KV cache."""
        return self.runner == "pooling"


_SUFFIXES: Final = {
    "ForCausalLM": ModelKind("generate", "none"),
    "ForConditionalGeneration": ModelKind("generate", "none"),
    "ChatModel": ModelKind("generate", "none"),
    "LMHeadModel": ModelKind("generate", "none"),
    "ForTextEncoding": ModelKind("pooling", "embed"),
    "EmbeddingModel": ModelKind("pooling", "embed"),
    "ForSequenceClassification": ModelKind("pooling", "classify"),
    "ForTokenClassification": ModelKind("pooling", "token_classify"),
    "ClassificationModel": ModelKind("pooling", "classify"),
    "Model": ModelKind("pooling", "embed"),
}
"""Suffix of an architecture's name -> kind. The first suffix that matches decides."""

_BY_NAME: Final = {
    "HF_ColBERT": ModelKind("pooling", "colbert"),
    "RobertaForMaskedLM": ModelKind("pooling", "embed"),
    "XLMRobertaForMaskedLM": ModelKind("pooling", "embed"),
}
"""Name of an architecture -> kind, for names whose suffix is unknown or would give a wrong kind."""

VISION_MODEL_TYPES: Final = frozenset(
    {"idefics3", "internvl", "llava", "llava_next", "qwen2_5_vl", "qwen2_vl", "smolvlm"}
)
"""Values of config.json's `model_type` for models that are served with images.

Tests compare their outputs with those of transformers' `generate`. In these models, the vision tower's output
replaces tokens, and the rest is an ordinary causal LM. Other models are served for text only, because their
language models need more: bidirectional attention to images (Gemma 3, PaliGemma), features that enter deeper
layers (Qwen3-VL), or cross-attention (Mllama).
"""


def read_model_kind(folder: Path, config: EngineConfig) -> ModelKind:
    """Returns the kind that `--runner` and `--convert` set. For `auto`, config.json and modules.json decide.

    Raises no error, because other code reports a folder that cannot be read.
    """
    known = [found for name in _architectures(folder, config.hf_overrides) if (found := _find_kind(name)) is not None]
    runner = config.runner if config.runner != "auto" else _own_runner(folder, known, config)
    if runner == "generate":
        return ModelKind("generate", "none")
    if config.convert in ("embed", "classify"):
        return ModelKind("pooling", "embed" if config.convert == "embed" else "classify")
    own_head = next((kind.head for kind in known if kind.head != "none"), None)
    return ModelKind("pooling", own_head or ("none" if config.convert == "none" else "embed"))


def accepts_images(folder: Path) -> bool:
    """Whether the model in this folder accepts images. False if config.json is missing or broken."""
    config = read_object(folder / "config.json")
    return "vision_config" in config and str(config.get("model_type")) in VISION_MODEL_TYPES


def _own_runner(folder: Path, known: list[ModelKind], config: EngineConfig) -> Runner:
    if config.convert in ("embed", "classify") or read_sentence_files(folder).has_pooling:
        return "pooling"
    return known[0].runner if known else "generate"


def _find_kind(architecture: str) -> ModelKind | None:
    by_suffix = (kind for suffix, kind in _SUFFIXES.items() if architecture.endswith(suffix))
    return _BY_NAME.get(architecture) or next(by_suffix, None)


def _architectures(folder: Path, overrides: dict[str, Any]) -> list[str]:
    names = (read_object(folder / "config.json") | overrides).get("architectures")
    return [str(name) for name in names] if isinstance(names, list) else []
