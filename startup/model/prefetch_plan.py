"""Lists the files that a start will read, in the order in which it reads them."""

from collections.abc import Iterator
from importlib.util import find_spec
from itertools import chain
from pathlib import Path
from typing import Final

from server.config import ModelFiles
from startup.model.checkpoint_folder import find_weight_files

_SMALL_FILES: Final = ("*.json", "*.jinja", "*.txt", "*.model", "*.model.v*", "*.tiktoken")
"""Configuration and tokenizer, which the API process reads first."""
_TORCH_LIBRARIES: Final = (
    "libtorch_global_deps.so",
    "libc10.so",
    "libtorch_cpu.so",
    "libtorch_python.so",
    "libc10_cuda.so",
    "libtorch_cuda.so",
)
"""The libraries that `import torch` maps, in its order."""


def plan_files(files: ModelFiles) -> tuple[Path, ...]:
    """Tokenizer and configuration, then the weights in load order; empty if the folder cannot be read."""
    folders = dict.fromkeys((files.tokenizer_path, files.path))
    try:
        weights = find_weight_files(files.path).present
    except OSError:
        weights = ()
    return tuple(dict.fromkeys(chain(*map(_small_files, folders), weights)))


def plan_libraries() -> tuple[Path, ...]:
    """The large shared libraries of torch, found without importing it; they matter with a cold page cache."""
    spec = find_spec("torch")
    if spec is None or spec.origin is None:
        return ()
    folder = Path(spec.origin).parent / "lib"
    return tuple(path for name in _TORCH_LIBRARIES if (path := folder / name).is_file())


def _small_files(folder: Path) -> Iterator[Path]:
    for pattern in _SMALL_FILES:
        yield from sorted(path for path in folder.glob(pattern) if path.is_file())
