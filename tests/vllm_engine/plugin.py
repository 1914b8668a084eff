"""Installs a module of the tests as a plugin of vLLM."""

from pathlib import Path
from types import ModuleType


def write_entry_point(folder: Path, module: ModuleType) -> None:
    """Writes an entry point for the module's `install`. Every vLLM with the folder on its path finds it."""
    name = module.__name__.rpartition(".")[2]
    installed = folder / f"{name}-1.0.dist-info"
    installed.mkdir()
    (installed / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name.replace('_', '-')}\nVersion: 1.0\n")
    (installed / "entry_points.txt").write_text(
        f"[vllm.general_plugins]\n{name.removesuffix('_plugin')} = {module.__name__}:install\n"
    )
