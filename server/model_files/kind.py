"""Decides from a model's files whether it generates text or pools it, as vLLM does; standard library only."""

import json
from pathlib import Path
from typing import Any, Final, Literal, NamedTuple

from server.config import EngineConfig
from server.model_files.sentence_files import read_sentence_files

Runner = Literal["generate", "pooling"]
Head = Literal["none", "embed", "classify", "token_classify", "colbert"]

_SUFFIXES: Final[tuple[tuple[str, Runner, Head], ...]] = (
    ("ForCausalLM", "generate", "none"),
    ("ForConditionalGeneration", "generate", "none"),
    ("ChatModel", "generate", "none"),
    ("LMHeadModel", "generate", "none"),
    ("ForTextEncoding", "pooling", "embed"),
    ("EmbeddingModel", "pooling", "embed"),
    ("ForSequenceClassification", "pooling", "classify"),
    ("ForTokenClassification", "pooling", "token_classify"),
    ("ClassificationModel", "pooling", "classify"),
    ("Model", "pooling", "embed"),
)
"""Suffixes of architecture names; the first match applies."""

_BY_NAME: Final[dict[str, tuple[Runner, Head]]] = {
    "HF_ColBERT": ("pooling", "colbert"),
    "RobertaForMaskedLM": ("pooling", "embed"),
    "XLMRobertaForMaskedLM": ("pooling", "embed"),
}
"""Architectures whose suffix is missing above or would give a wrong result."""


class ModelKind(NamedTuple):
    """How a model is run."""

    runner: Runner
    head: Head
    """The layers after the transformer of a pooling model."""

    @property
    def is_pooling(self) -> bool:
        """Whether the model pools: it returns numbers and needs no KV cache."""
        return self.runner == "pooling"


def read_model_kind(folder: Path, config: EngineConfig) -> ModelKind:
    """The kind by `--runner` and `--convert`; if these are `auto`, by config.json and modules.json.

    Never raises: other code reports a folder that cannot be read.
    """
    architectures = _architectures(folder, config.hf_overrides)
    runner = config.runner if config.runner != "auto" else _own_runner(folder, architectures, config)
    if runner == "generate":
        return ModelKind("generate", "none")
    if config.convert in ("embed", "classify"):
        return ModelKind("pooling", "embed" if config.convert == "embed" else "classify")
    heads = [head for name in architectures if (head := _defaults(name)[1]) != "none"]
    if config.convert == "none":
        return ModelKind("pooling", heads[0] if heads else "none")
    return ModelKind("pooling", heads[0] if heads else "embed")


def _own_runner(folder: Path, architectures: list[str], config: EngineConfig) -> Runner:
    if config.convert in ("embed", "classify") or read_sentence_files(folder).has_pooling:
        return "pooling"
    return next((_defaults(name)[0] for name in architectures if _is_known(name)), "generate")


def _is_known(architecture: str) -> bool:
    return architecture in _BY_NAME or any(architecture.endswith(suffix) for suffix, _, _ in _SUFFIXES)


def _defaults(architecture: str) -> tuple[Runner, Head]:
    if architecture in _BY_NAME:
        return _BY_NAME[architecture]
    return next(
        ((runner, head) for suffix, runner, head in _SUFFIXES if architecture.endswith(suffix)), ("generate", "none")
    )


def _architectures(folder: Path, overrides: dict[str, Any]) -> list[str]:
    try:
        config: Any = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return []
    names = (config | overrides).get("architectures") if isinstance(config, dict) else None
    return [str(name) for name in names] if isinstance(names, list) else []
