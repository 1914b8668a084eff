"""Imports vLLM's modules one after the other on the main thread, except those that serving does not use."""

import importlib
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from traceback import walk_tb
from types import SimpleNamespace
from typing import Any, Final, Literal, NamedTuple

from startup.errors import is_of_machine
from startup.hook import place_of
from startup.imports.cheap_calls import make_calls_cheap
from startup.imports.gpu_guard import NeedsGpuError, driver_kept_uninitialized, has_failed, leave_to_forks
from startup.imports.heavy import importing
from startup.imports.late_modules import is_late
from startup.imports.learned_imports import learned_imports
from startup.imports.scan_cache import cached_scans
from startup.imports.stand_ins import StandIns
from startup.vllm.patches.compiler import CompilerTime, compiler_imported
from startup.vllm.patches.late_imports import UNUSED_COMMANDS, late_imports

_COMMAND_MODULES: Final = ("vllm.entrypoints.cli.main", "vllm.entrypoints.cli.serve")
"""Plain vLLM (0.29 to 0.33) has imported them when it loads plugins, before it reads its arguments."""
API_MODULES: Final = (*_COMMAND_MODULES, "vllm.v1.engine.async_llm")

_LAUNCHERS: Final = "vllm.entrypoints.launchers"
LATER_MODULES: Final = (
    "vllm.kernels",
    f"{_LAUNCHERS}.app",
    f"{_LAUNCHERS}.api_server.app_state",
    *("uvicorn.protocols.http.auto", "uvicorn.protocols.websockets.auto", "uvicorn.lifespan.on"),
)
"""vLLM imports these modules once the engine is ready. The launcher does so while the model is loaded.

vLLM's routers are not in the list, because the schemas of the API depend on the order of their imports.
Nor are libraries whose import changes more than `sys.modules`. For example, the import of
model_hosting_container_standards sets the level of the root logger.
"""

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
"""Modules of subcommands other than `serve` -> the subcommands' names, which vLLM lists in error messages."""


@contextmanager
def importing_vllm(compiler: CompilerTime, *, late_in: Literal["api", "forkserver"] | None) -> Iterator[None]:
    """Inside this context, imports use the import file, keep the GPU's driver for forks, and are lean.

    Args:
        compiler: when torch's compiler is imported.
        late_in: the process whose rarely used imports are delayed. None delays none.
    """
    make_calls_cheap()
    with (
        learned_imports(),
        compiler_imported(compiler),
        driver_kept_uninitialized(),
        late_imports(in_engine=late_in == "forkserver") if late_in else nullcontext(),
    ):
        yield


def import_api_server(
    more: Iterable[str] = (),
    *,
    is_lean: bool = True,
    in_order: bool = False,
    before_each: Callable[[], None] = lambda: None,
) -> Mapping[str, str]:
    """Imports the API server and further modules.

    Args:
        more: further modules, in the order of import. Errors in these modules are ignored.
        is_lean: whether to leave out torch's compiler and modules that the engine's start does not need. Must
            be false if a model runs in this process.
        in_order: whether code of others may change vLLM's modules before the rest is imported. So vLLM itself
            imports the rest, and nothing but torch's compiler is left out.
        before_each: called before each import. An exception that it raises ends the imports.

    Returns:
        The API server's own modules that could not be imported, with their errors.
    """
    modules = (*(_COMMAND_MODULES if in_order else API_MODULES), *more)
    if all(name in sys.modules for name in modules):  # in a fork of a template process
        return {}
    if not in_order:
        stub_unused_commands()
    with importing_vllm("deferred" if is_lean else "now", late_in="api" if is_lean and not in_order else None):
        failed = import_leniently(modules, before_each)
    return {name: failure.text for name, failure in failed.items() if name in API_MODULES}


def import_rest(modules: Iterable[str], *, is_lean: bool = True) -> None:
    """Imports further modules while the engine starts. If `is_lean`, leaves out torch's compiler."""
    with importing(), compiler_imported("deferred" if is_lean else "now"):
        import_leniently(modules)


class FailedImport(NamedTuple):
    """The error of a failed import, without the frames that the exception would keep in memory."""

    text: str
    is_of_machine: bool


def import_leniently(modules: Iterable[str], before_each: Callable[[], None] = lambda: None) -> dict[str, FailedImport]:
    """Imports the modules. Returns the modules that fail, with their errors.

    Code that needs a failed module imports it again, and gets the error then. A module that needs the GPU
    does not count as failed, because forks import it. The imports end as soon as forks can no longer use the
    GPU.
    """
    failed = {}
    with cached_scans():
        for name in modules:
            before_each()
            if has_failed():
                break
            try:
                importlib.import_module(name)
            except NeedsGpuError as err:
                leave_to_forks(err)
                _forget_packages_of(err)
            except Exception as err:  # noqa: BLE001 - a module may raise any error
                failed[name] = FailedImport(f"{type(err).__name__}: {err}", is_of_machine(err))
                _forget_packages_of(err)
    return failed


def _forget_packages_of(err: BaseException) -> None:
    """Removes from `sys.modules` the subpackages of a package whose import has failed.

    Python itself removes only the failed package. While a subpackage remains, an import of a module in it
    does not import the failed package again. Such an import fails if package and subpackage import each
    other.
    """
    names = {str(frame.f_globals.get("__name__")) for frame, _ in walk_tb(err.__traceback__)}
    forgotten = tuple(f"{name}." for name in names if name not in sys.modules)
    for name, module in list(sys.modules.items()):
        if name.startswith(forgotten) and (is_late(name) or hasattr(module, "__path__")):
            del sys.modules[name]


def stub_unused_commands() -> None:
    """Makes imports of subcommands other than `serve` return stand-ins, which list the commands."""
    if UNUSED_COMMANDS.applies:
        root = place_of(f"{_ROOT}main").removesuffix("main")
        functions = {f"{root}{module}": _functions_of(names) for module, names in _UNUSED.items()}
        StandIns([*functions], functions=functions).install()


def _functions_of(commands: Iterable[str]) -> dict[str, Callable[..., Any]]:
    """What vLLM calls of a subcommand's module. It adds the commands to its parser, and runs none of them."""
    return {
        "cmd_init": lambda **_: list(map(_stub_command, commands)),
        "maybe_exec_rust_bench": lambda: None,  # because the command is `serve`
    }


def _stub_command(name: str) -> SimpleNamespace:
    return SimpleNamespace(name=name, cmd=None, subparser_init=lambda subparsers: subparsers.add_parser(name))
