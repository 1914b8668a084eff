"""Controls what multiprocessing's new programs, forkserver and spawned processes, get from this process."""

import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from importlib.machinery import ModuleSpec
from multiprocessing import forkserver, resource_tracker
from typing import Any, Final

from envs import foreign
from startup.processes import group_signals
from startup.processes.dormant_forkserver import instead_of_a_new_program

OWN_PACKAGES_MODULE: Final = "vllm_cli.own_packages"
"""Imported first in every new program, so that a user's `server.py` does not replace this one's."""

_WITHOUT_WORKING_FOLDER: Final = {"PYTHONSAFEPATH": "1"}
"""Variables for the forkserver: it runs with `python -c`, which puts the working folder on the path."""
_NO_LEAK_WARNINGS: Final = "ignore::UserWarning:multiprocessing.resource_tracker"


def ensure_forkserver(preload_module: str) -> None:
    """Starts a forkserver that imports the module, unless one runs.

    In a warm start it is a fork that has imported everything already (`dormant_forkserver`). Called on the
    main thread, since the forkserver ends with its thread.
    """
    forkserver.set_forkserver_preload([OWN_PACKAGES_MODULE, preload_module])
    with ExitStack() as stack:
        stack.enter_context(without_main_module())
        stack.enter_context(without_group_signals())
        stack.enter_context(foreign.overlaid(_WITHOUT_WORKING_FOLDER))
        stack.enter_context(instead_of_a_new_program())
        forkserver.ensure_running()


@contextmanager
def without_main_module(*, instead: str | None = None) -> Iterator[None]:
    """While open, multiprocessing's new processes do not run this process's script.

    Args:
        instead: a module that a spawned process imports before it unpickles anything
            (`multiprocessing.spawn.prepare`). None for a process forked from a forkserver that has imported
            it already: `runpy` warns about a second run.
    """
    main = vars(sys.modules["__main__"])
    hidden: dict[str, Any] = {name: main.pop(name) for name in ("__file__", "__spec__") if name in main}
    main["__spec__"] = ModuleSpec(instead, None) if instead else None
    try:
        yield
    finally:
        main.update(hidden)


@contextmanager
def without_group_signals() -> Iterator[None]:
    """While open, processes start with the group signals blocked.

    multiprocessing's resource tracker is started before: its start leaves SIGINT and SIGTERM unblocked,
    whatever their state was (`ResourceTracker.ensure_running`).
    """
    start_resource_tracker()
    with group_signals.blocked():
        yield


def start_resource_tracker() -> None:
    """Starts the process that removes what others leave behind, unless it runs; it does not warn about that.

    After a crash its warnings would be the last lines of the output.
    """
    sys.warnoptions.append(_NO_LEAK_WARNINGS)
    try:
        with group_signals.blocked():
            resource_tracker.ensure_running()
    finally:
        sys.warnoptions.remove(_NO_LEAK_WARNINGS)
