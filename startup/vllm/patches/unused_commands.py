"""Replaces the modules of vLLM's other subcommands, which `vllm serve` imports only to list their names.

One of them, `vllm preload`, imports the model loader and with it torch's compiler.
"""

from importlib.abc import Loader
from importlib.machinery import ModuleSpec
from types import ModuleType, SimpleNamespace
from typing import Any, Final

from startup.hooks.hook import Hook, Text
from startup.imports.finder import replace, stop_replacing

UNUSED_COMMANDS: Final = Hook(
    "unused subcommands",
    does="leaves out the modules of vLLM's other subcommands",
    without="they are imported to list their names, and `vllm preload` imports torch's compiler",
    needs=(Text(("vllm.entrypoints.cli.main",), r"\.cmd_init\(", "cmd_init()"),),
)

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
    if UNUSED_COMMANDS.applies:
        stop_replacing(_find_stub)
        replace(_find_stub)


def _find_stub(fullname: str) -> ModuleSpec | None:
    root, _, module = fullname.partition(_ROOT)
    return ModuleSpec(fullname, _StubLoader()) if not root and module in _UNUSED else None


class _StubLoader(Loader):
    def create_module(self, spec: ModuleSpec) -> ModuleType:
        return _StubModule(spec.name)

    def exec_module(self, module: ModuleType) -> None:
        """A stub has no code."""


class _StubModule(ModuleType):
    def cmd_init(self, **_: Any) -> list[Any]:
        """The commands that vLLM adds to its parser: names that it does not dispatch to."""
        return list(map(_stub_command, _UNUSED[self.__name__.removeprefix(_ROOT)]))

    def maybe_exec_rust_bench(self) -> None:
        """Runs nothing: the command is `serve`."""


def _stub_command(name: str) -> SimpleNamespace:
    return SimpleNamespace(name=name, cmd=None, subparser_init=lambda subparsers: subparsers.add_parser(name))
