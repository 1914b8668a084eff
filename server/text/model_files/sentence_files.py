"""Reads the files with which sentence-transformers describes an embedding model. Standard library only."""

from pathlib import Path
from typing import Any, Final, NamedTuple

from base.json_depth import read_json

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
