"""Finds the plugins of vLLM that other packages install, which may add flags, parsers, models and platforms.

Reads the lists of entry points themselves: `importlib.metadata` would parse those of all packages.
"""

import configparser
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Final

from startup.vllm.facts.vllm_facts import Plugin

_GROUPS: Final = ("vllm.general_plugins", "vllm.platform_plugins")
_METADATA: Final = ("*.dist-info", "*.egg-info")


def plugin_folders() -> list[str]:
    """The folders that packages are installed in: their stamps change with an installation."""
    return [folder for folder in dict.fromkeys(sys.path) if folder and Path(folder).is_dir()]


def read_plugins(folders: list[str]) -> tuple[Plugin, ...]:
    """All plugins that are installed there, without vLLM's own."""
    return tuple(plugin for folder in folders for plugin in _plugins_in(Path(folder)))


def _plugins_in(folder: Path) -> Iterator[Plugin]:
    for path in (found for pattern in _METADATA for found in folder.glob(f"{pattern}/entry_points.txt")):
        with suppress(OSError, UnicodeDecodeError, configparser.Error):
            text = path.read_text(encoding="utf-8")
            if "[vllm." in text:
                yield from _plugins_of(text)


def _plugins_of(text: str) -> Iterator[Plugin]:
    parser = configparser.ConfigParser(delimiters=("=",), interpolation=None)
    parser.optionxform = str  # type: ignore[assignment, method-assign]  # keeps the case of names
    parser.read_string(text)
    for group in filter(parser.has_section, _GROUPS):
        for name, value in parser.items(group):
            if not value.startswith("vllm."):
                yield Plugin(group, name)
