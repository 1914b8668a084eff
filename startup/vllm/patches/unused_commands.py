"""Replaces the modules of vLLM's other subcommands, which `vllm serve` imports only to list their names.

One of them, `vllm preload`, imports the model loader and with it torch's compiler.
"""

import sys
from collections.abc import Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any, Final

from startup.hooks.left_out import applies
from startup.hooks.of_vllm import UNUSED_COMMANDS

_ROOT: Final = "vllm.entrypoints.cli."
_UNUSED: Final = {
    "benchmark.main": ("bench",),
    "collect_env": ("collect-env",),
    "download_kernels": ("download-kernels",),
    "launch": ("launch",),
    "openai": ("chat", "complete"),
    "preload": ("preload",),
    "run_batch": ("run-batch",),
    "snapshot": ("snapshot",),
}
"""Modules and their commands, whose names appear in vLLM's messages about unknown commands."""


def stub_unused_commands() -> None:
    """From now on, importing the module of another subcommand gives a stub; a second call does nothing."""
    if applies(UNUSED_COMMANDS) and not any(isinstance(finder, _StubFinder) for finder in sys.meta_path):
        sys.meta_path.insert(0, _StubFinder())


class _StubFinder(MetaPathFinder, Loader):
    def find_spec(
        self, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        root, _, module = fullname.partition(_ROOT)
        return ModuleSpec(fullname, self) if not root and module in _UNUSED else None

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        return _StubModule(spec.name)

    def exec_module(self, module: ModuleType) -> None:
        """A stub has no code."""


class _StubModule(ModuleType):
    def cmd_init(self, **_: Any) -> list[Any]:
        """The commands that vLLM adds to its parser."""
        return [_StubCommand(name) for name in _UNUSED[self.__name__.removeprefix(_ROOT)]]

    def maybe_exec_rust_bench(self) -> None:
        """Runs nothing: the command is `serve`."""


class _StubCommand:
    """A subcommand's name without its implementation."""

    def __init__(self, name: str) -> None:
        self.name = name

    def subparser_init(self, subparsers: Any) -> Any:
        """Adds the name to vLLM's parser."""
        return subparsers.add_parser(self.name)

    def cmd(self, _: Any) -> None:
        """Runs nothing: the command is `serve`."""
