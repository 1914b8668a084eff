"""Reads the small files of a model's folder: what kind of model it is, and which tokenizer it has.

The rules are vLLM's. The module needs only the standard library.
"""

import re
from pathlib import Path
from typing import Any, Final, Literal, NamedTuple

from base.errors import ServerError
from base.json_depth import read_json
from server.terms.config import EngineConfig

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
    kinds = map(_find_kind, _architectures(folder, config.hf_overrides))
    known = [kind for kind in kinds if kind is not None]
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


_ENCODER_FILES: Final = tuple(
    f"sentence_{name}_config.json" for name in ("bert", "roberta", "distilbert", "camembert", "albert", "xlm-roberta")
)
_PACKAGES: Final = ("sentence_transformers.", "pylate.")
_KNOWN_MODULES: Final = frozenset({"Transformer", "Pooling", "Dense", "Normalize"})
_POOLING_TYPES: Final = {"cls": "CLS", "mean": "MEAN", "lasttoken": "LAST"}


class SentenceFiles(NamedTuple):
    """The settings of an embedding model: modules after its encoder, and the preparation of texts."""

    pooling_modes: tuple[str, ...] = ()
    """The modes' names as in the file, such as `mean`. The vectors of several modes are concatenated."""
    has_pooling: bool = False
    """Whether the vectors of all tokens are pooled into one."""
    normalizes: bool = False
    dense_folders: tuple[Path, ...] = ()
    """Folders of the linear layers after the pooling."""
    unknown_modules: tuple[str, ...] = ()
    max_seq_length: int | None = None
    does_lower_case: bool = False

    @property
    def pooling_type(self) -> str | None:
        """The mode as CLS, MEAN or LAST, if it is the only mode. Otherwise None."""
        return _POOLING_TYPES.get(self.pooling_modes[0]) if len(self.pooling_modes) == 1 else None


def read_sentence_files(folder: Path) -> SentenceFiles:
    """Reads modules.json and related files. A setting whose file is missing keeps its default."""
    encoder = next(filter(None, (read_object(folder / name) for name in _ENCODER_FILES)), {})
    length = encoder.get("max_seq_length")
    modules = _read(folder / "modules.json")
    named = [(_module_name(module), _module_folder(folder, module)) for module in modules or () if module]
    poolings = [path for name, path in named if name == "Pooling"]
    return SentenceFiles(
        has_pooling=bool(poolings),
        pooling_modes=_pooling_modes(poolings[0]) if poolings else (),
        normalizes=any(name == "Normalize" for name, _ in named),
        dense_folders=tuple(path for name, path in named if name == "Dense"),
        unknown_modules=tuple(name for name, _ in named if name not in _KNOWN_MODULES),
        max_seq_length=length if isinstance(length, int) and length > 0 else None,
        does_lower_case=encoder.get("do_lower_case") is True,
    )


def _module_name(module: Any) -> str:
    """Shortens `sentence_transformers.models.Pooling` to `Pooling`.

    Modules of other packages keep their full name.
    """
    kind = str(module.get("type")) if isinstance(module, dict) else str(module)
    return kind.rpartition(".")[2] if kind.startswith(_PACKAGES) else kind


def _module_folder(folder: Path, module: Any) -> Path:
    return folder / str(module.get("path") or "") if isinstance(module, dict) else folder


def _pooling_modes(folder: Path) -> tuple[str, ...]:
    """Reads `pooling_mode: "mean"`, or the older `pooling_mode_mean_tokens: true`."""
    config = read_object(folder / "config.json")
    named = config.get("pooling_mode")
    if isinstance(named, str):
        return (_bare_mode(named),)
    return tuple(
        _bare_mode(key.removeprefix("pooling_mode_"))
        for key, is_set in config.items()
        if key.startswith("pooling_mode_") and is_set is True
    )


def _bare_mode(name: str) -> str:
    return name.removesuffix("_tokens").removesuffix("_token")


def read_object(path: Path) -> dict[str, Any]:
    """Returns the file's JSON object, or an empty dict if the file is missing or holds no object."""
    content = _read(path)
    return content if isinstance(content, dict) else {}


def _read(path: Path) -> Any:
    try:
        return read_json(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None


_OF_MISTRAL: Final = re.compile(r"tekken.*\.json|.+\.model\.v\d+(m\d+)?")


class TokenizerLoadError(ServerError):
    """The tokenizer cannot be loaded. The message is one line that names the folder and the fault."""


def read_json_object(path: Path) -> dict[str, Any]:
    """Returns the file's JSON object, or an empty dict if there is no such file.

    Raises:
        TokenizerLoadError: the file is not JSON, or not an object.
    """
    if not path.is_file():
        return {}
    try:
        content = read_json(path.read_text(encoding="utf-8"))
    except ValueError as err:
        raise TokenizerLoadError(f"{path} is not valid JSON: {err}") from err
    if not isinstance(content, dict):
        raise TokenizerLoadError(f"{path} must hold a JSON object, got {type(content).__name__}")
    return content


def find_mistral_file(folder: Path) -> Path | None:
    """Returns a tokenizer of the folder that only mistral-common reads, and so only vLLM."""
    for file in sorted(folder.glob("*")):
        if _OF_MISTRAL.fullmatch(file.name):
            return file
    return None


def foreign_problem(folder: Path, mode: str) -> str | None:
    """Returns why only vLLM can use the folder's tokenizer. None if there is no such reason.

    Always None if the operator has chosen a mode.
    """
    if mode != "auto":
        return None
    has_usual = any((folder / name).exists() for name in ("tokenizer.json", "tokenizer.model"))
    if any(folder.glob("tokenizer*.tok.json")) and not (folder / "tokenizer.json").exists():
        return f"{folder} has Grok-2's tokenizer, which the embedded engine does not read: serve it with --engine vllm"
    if not has_usual and (file := find_mistral_file(folder)) is not None:
        return f"{folder} has only {file.name}, which the embedded engine does not read: serve it with --engine vllm"
    if read_object(folder / "config.json").get("model_type") == "deepseek_v32":
        return (
            f"{folder}: the embedded engine does not write DeepSeek-V3.2's conversations. Serve it with --engine vllm, "
            "or with --tokenizer-mode hf for completions alone"
        )
    return None
