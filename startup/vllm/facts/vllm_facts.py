"""What is known about an installed vLLM, and the plugins of other packages; nothing of vLLM is imported."""

import configparser
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, Final, Literal, NamedTuple

from envs import foreign

_ALLOWED_PLUGINS: Final = "VLLM_PLUGINS"

ValueKind = Literal[
    "text", "int", "size", "size or auto", "float", "json", "json or text", "object", "folded", "unknown"
]
"""How vLLM reads a value: `size` is an integer with a suffix such as 8k, `object` JSON with known fields,
`folded` a choice in any case and with dashes; a value of the kind `unknown` is not checked.
"""
_GROUPS: Final = ("vllm.general_plugins", "vllm.platform_plugins")
_METADATA: Final = ("*.dist-info", "*.egg-info")


class FlagFact(NamedTuple):
    """One flag, in the terms of argparse."""

    names: tuple[str, ...]
    """In vLLM's order; a short name may come before or after the long one."""
    kind: ValueKind = "unknown"
    nargs: int | str | None = None
    """0 for a switch."""
    opposites: tuple[str, ...] = ()
    """The options that turn a switch off, such as `--no-x`."""
    is_optional: bool = False
    """Whether an empty value, and `None`, stand for no value."""
    choices: tuple[Any, ...] | None = None

    @property
    def name(self) -> str:
        """The first long name."""
        return next(name for name in self.names if name.startswith("--"))

    @property
    def parameter(self) -> str:
        """The attribute of argparse's result."""
        return self.name.removeprefix("--").replace("-", "_")


class Plugin(NamedTuple):
    """An entry point of another package."""

    group: str
    name: str


class VllmFacts(NamedTuple):
    """What one installation of vLLM accepts."""

    flags: tuple[FlagFact, ...]
    has_all_flags: bool
    """Whether every other flag is unknown to vLLM itself; a plugin may add one."""
    installed_plugins: tuple[Plugin, ...] = ()

    @property
    def plugins(self) -> tuple[Plugin, ...]:
        """The plugins that vLLM will load; they may know more names than vLLM itself."""
        if not foreign.is_set(_ALLOWED_PLUGINS):
            return self.installed_plugins
        allowed = foreign.text_of(_ALLOWED_PLUGINS).split(",")
        return tuple(plugin for plugin in self.installed_plugins if plugin.name in allowed)


def plugin_folders() -> list[str]:
    """The folders that packages are installed in: their stamps change with an installation."""
    return [folder for folder in dict.fromkeys(sys.path) if folder and Path(folder).is_dir()]


def read_plugins(folders: list[str]) -> tuple[Plugin, ...]:
    """All plugins that are installed there, without vLLM's own; they may add flags, parsers and models.

    Reads the lists of entry points themselves: `importlib.metadata` would parse those of all packages.
    """
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
