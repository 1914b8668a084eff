"""Imports this program's packages instead of a user's modules of the same names.

`server`, `startup`, `base` and `envs` are common names: with `PYTHONPATH=.` and a `server.py` in that folder,
Python would import the user's file. The console script, `python -m vllm_cli`, the forkserver and spawned
processes therefore import this module before any other package of this program; forks inherit it. The
prefetch helper runs isolated (`python -I`), without the user's folders.

This finder is not the one of `startup.imports`: it is what makes `startup` importable.
"""

import os
import sys
from collections.abc import Sequence
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType

_PACKAGES = frozenset({"vllm_cli", "startup", "server", "base", "envs"})
_ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))  # noqa: PTH100, PTH120 - pathlib takes 7 ms


class OwnPackagesFinder:
    """A meta-path finder that looks for the five top-level packages only where this module is installed."""

    @staticmethod
    def find_spec(name: str, path: Sequence[str] | None = None, target: ModuleType | None = None) -> ModuleSpec | None:
        """Implements `importlib.abc.MetaPathFinder`; None for every other module."""
        return PathFinder.find_spec(name, [_ROOT], target) if name in _PACKAGES else None


def describe_conflict() -> str | None:
    """A warning if the unrelated distribution `vllm-cli` is installed into the same folder."""
    for folder in sorted(os.listdir(_ROOT)):  # noqa: PTH208
        if not (folder.startswith("vllm_cli-") and folder.endswith(".dist-info")):
            continue
        name = folder.removesuffix(".dist-info").replace("vllm_cli-", "vllm-cli ")
        return (
            f"the unrelated distribution {name} has installed a package vllm_cli into the same folder. Remove it: "
            "pip uninstall vllm-cli; then, in a clone of this program: pip install --force-reinstall --no-deps ."
        )
    return None


def _is_installed() -> bool:
    """Also where this file was run a second time under another module name (`multiprocessing.spawn`)."""
    return any(getattr(finder, "__name__", "") == OwnPackagesFinder.__name__ for finder in sys.meta_path)


if not _is_installed():
    sys.meta_path.insert(0, OwnPackagesFinder)
