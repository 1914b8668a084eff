"""The large shared libraries that a start reads, for a page cache that does not hold them."""

from importlib.util import find_spec
from pathlib import Path
from typing import Final

_TORCH_LIBRARIES: Final = (
    "libtorch_global_deps.so",
    "libc10.so",
    "libtorch_cpu.so",
    "libtorch_python.so",
    "libc10_cuda.so",
    "libtorch_cuda.so",
)
"""The libraries that `import torch` maps, in its order."""


def plan_libraries() -> tuple[Path, ...]:
    """The large shared libraries of torch, found without importing it; they matter with a cold page cache."""
    spec = find_spec("torch")
    if spec is None or spec.origin is None:
        return ()
    folder = Path(spec.origin).parent / "lib"
    return tuple(path for name in _TORCH_LIBRARIES if (path := folder / name).is_file())
