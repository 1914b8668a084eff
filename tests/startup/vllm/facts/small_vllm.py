"""A folder with sources in the form of vLLM's, with few of its flags and names; nothing of it is imported."""

import re
from pathlib import Path

_SOURCES = Path(__file__).with_name("vllm_sources.txt")


def write_small_vllm(folder: Path) -> Path:
    """Writes the package `vllm` into a folder; returns the folder of the package."""
    parts = re.split(r"^==> (\S+) <==\n", _SOURCES.read_text(), flags=re.MULTILINE)[1:]
    for name, content in zip(parts[::2], parts[1::2], strict=True):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
    return folder / "vllm"


def change(package: Path, module: str, old: str, new: str) -> None:
    """Replaces a text in one module."""
    path = package / module
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))
