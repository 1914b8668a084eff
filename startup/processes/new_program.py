"""Controls what multiprocessing's new programs, forkserver and spawned processes, get from this process.

In a warm start, a fork that has imported everything, and is dormant until then, becomes the forkserver.
"""

import fcntl
import os
import signal
import socket
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from importlib.machinery import ModuleSpec
from multiprocessing import forkserver, resource_tracker, util
from pathlib import Path
from typing import Any, Final, NamedTuple, NoReturn

from base.machine.command_line import replace_command_line
from envs import foreign
from startup.hooks.hook import Hook, Name, Text
from startup.processes import death_pipe, group_signals
from startup.processes.library_state import refresh_libraries
from startup.processes.messages import MessageError, dictionary, receive, send

OWN_PACKAGES_MODULE: Final = "vllm_cli.own_packages"
"""Imported first in every new program, so that a user's `server.py` does not replace this one's."""

_WITHOUT_WORKING_FOLDER: Final = {"PYTHONSAFEPATH": "1"}
"""Variables for the forkserver: it runs with `python -c`, which puts the working folder on the path."""
_NO_LEAK_WARNINGS: Final = "ignore::UserWarning:multiprocessing.resource_tracker"

_START_PROGRAM: Final = Name("multiprocessing.util", "spawnv_passfds", ("path", "args", "passfds"))
_FORKSERVER_CODE: Final = "from multiprocessing.forkserver import main"
"""What multiprocessing executes in a new interpreter."""
DORMANT_FORKSERVER: Final = Hook(
    "dormant forkserver",
    does="makes a fork of a standby multiprocessing's forkserver",
    without="the forkserver of a warm start imports vLLM again",
    needs=(_START_PROGRAM, Text(("multiprocessing.forkserver",), _FORKSERVER_CODE, "the code of its program")),
)

_COMMAND_LINE: Final = b"vllm-cli dormant forkserver\0"
"""Shown by `ps` until it is woken, as it would otherwise look like the server."""

_dormant: "_Dormant | None" = None


def ensure_forkserver(preload_module: str) -> None:
    """Starts a forkserver that imports the module, unless one runs.

    Called on the main thread, since the forkserver ends with its thread.
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


class _Dormant(NamedTuple):
    """The waiting process; used once."""

    pid: int
    connection: socket.socket
    at_import: Mapping[str, str]
    """The environment of the imports."""


def fork_dormant(close_in_child: Callable[[], None], at_import: Mapping[str, str]) -> None:
    """Forks the process; called on the main thread of a process with one thread.

    Args:
        close_in_child: closes what only this process should have open.
        at_import: the environment of the imports.
    """
    global _dormant
    ours, theirs = socket.socketpair()
    parent_pid = os.getpid()
    with group_signals.blocked():  # as multiprocessing's new programs: blocked until they import their modules
        pid = os.fork()
        if pid == 0:
            death_pipe.follow_parent(parent_pid)
            ours.close()
            close_in_child()
            replace_command_line(_COMMAND_LINE)
            _wait_for_task(theirs)
    theirs.close()
    _dormant = _Dormant(pid, ours, at_import)


def discard_dormant() -> None:
    """Ends the process: this start needs no forkserver."""
    global _dormant
    if _dormant is not None:
        os.kill(_dormant.pid, signal.SIGKILL)  # forks of this process may keep the connection open
        os.waitpid(_dormant.pid, 0)
        _dormant.connection.close()
        _dormant = None


def differing_variable(names: Iterable[str]) -> str | None:
    """The first of these variables that had another value during the imports; None if all are the same."""
    if _dormant is None:
        return None
    return next((n for n in sorted(names) if _dormant.at_import.get(n, "") != foreign.text_of(n)), None)


@contextmanager
def instead_of_a_new_program() -> Iterator[None]:
    """While open, a forkserver that multiprocessing starts is the waiting process, if there is one."""
    original = _START_PROGRAM.get(util)

    def start(path: Any, words: Any, fds: Any) -> Any:
        global _dormant
        if _dormant is None or not any(_FORKSERVER_CODE in os.fsdecode(word) for word in words):
            return original(path, words, fds)
        process, _dormant = _dormant, None
        with process.connection as connection:
            numbers = [str(fd).encode() for fd in fds]
            variables = [os.fsencode(f"{name}={value}") for name, value in foreign.snapshot().items()]
            send(connection, [os.fsencode(word) for word in words], variables, numbers, fds=list(fds))
        return process.pid

    _START_PROGRAM.replace(util, start)
    try:
        yield
    finally:
        _START_PROGRAM.replace(util, original)


def _wait_for_task(connection: socket.socket) -> NoReturn:
    try:
        (words, variables, numbers), fds = receive(connection)
        begin = words.index(b"-c") + 1  # the options of the interpreter come before it, since 3.14 arguments after it
        code, environment = words[begin], dictionary(variables)
    except (OSError, ValueError, IndexError, MessageError):  # discarded, or its parent has ended
        os._exit(0)
    connection.close()
    replace_command_line(b"".join(word + b"\0" for word in words))  # shown by `ps`
    with suppress(OSError):
        Path("/proc/self/comm").write_bytes(os.path.basename(words[0]))  # noqa: PTH119
    _renumber(fds, [int(number) for number in numbers])
    refresh_libraries(foreign.replace_all(environment))
    sys.argv[:] = map(os.fsdecode, words[begin - 1 :])
    exit_code = 1
    try:
        exec(code, {"__name__": "__main__"})  # multiprocessing's code, from our parent
        exit_code = 0
    except SystemExit:
        exit_code = 0
    except BaseException:  # noqa: BLE001 - as the interpreter does at the top
        sys.excepthook(*sys.exc_info())
    finally:
        os._exit(exit_code)


def _renumber(fds: list[int], numbers: list[int]) -> None:
    """Gives descriptors the numbers that the code contains."""
    moved = [fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, max(numbers) + 1) for fd in fds]
    for fd in fds:
        os.close(fd)
    for fd, number in zip(moved, numbers, strict=True):
        os.dup2(fd, number)
        os.close(fd)
