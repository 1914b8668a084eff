"""Leaves vLLM's other subcommands out of `vllm serve`, which imports them all to list their names.

One of them, `vllm preload`, brings the model loader and with it torch's compiler into the API server's process.
"""

import sys
from collections.abc import Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any, Final

_ROOT: Final = "vllm.entrypoints.cli."
_IDLE: Final = {
    "benchmark.main": ("bench",),
    "collect_env": ("collect-env",),
    "download_kernels": ("download-kernels",),
    "launch": ("launch",),
    "openai": ("chat", "complete"),
    "preload": ("preload",),
    "run_batch": ("run-batch",),
    "snapshot": ("snapshot",),
}
"""Modules and the commands in them: their names are in vLLM's messages about wrong words."""


def stub_unused_commands() -> None:
    """From now on, modules of other subcommands are empty but for the commands' names."""
    sys.meta_path.insert(0, _IdleFinder())


class _IdleFinder(MetaPathFinder, Loader):
    def find_spec(
        self, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        root, _, module = fullname.partition(_ROOT)
        return ModuleSpec(fullname, self) if not root and module in _IDLE else None

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        return _IdleCommand(spec.name)

    def exec_module(self, module: ModuleType) -> None:
        """There is nothing to run."""


class _IdleCommand(ModuleType):
    def cmd_init(self, **_: Any) -> list[Any]:
        """The commands that vLLM adds to its parser."""
        return [_IdleSubcommand(name) for name in _IDLE[self.__name__.removeprefix(_ROOT)]]

    def maybe_exec_rust_bench(self) -> None:
        """Runs nothing: the command is `serve`."""


class _IdleSubcommand:
    """A name on the command line, and nothing behind it."""

    def __init__(self, name: str) -> None:
        self.name = name

    def subparser_init(self, subparsers: Any) -> Any:
        """Adds the name to vLLM's parser."""
        return subparsers.add_parser(self.name)

    def cmd(self, _: Any) -> None:
        """Runs nothing: the command is `serve`."""
