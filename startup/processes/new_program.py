"""Starts new programs, or runs programs in forks. Decides what multiprocessing's programs inherit.

The dormant process is a fork of the launcher that waits for one program, normally the forkserver's program.
"""

import atexit
import os
import signal
import socket
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from importlib.machinery import ModuleSpec
from multiprocessing import resource_tracker, util
from pathlib import Path
from typing import Any, Final, NamedTuple, NoReturn

from base.machine.command_line import replace_command_line
from base.machine.descriptors import is_open, move_socket_up, move_up
from base.machine.libc import load_libc
from envs import environment, foreign
from startup.hook import Name
from startup.processes import death_pipe, group_signals
from startup.processes.messages import MessageError, RefusedError, dictionary, receive, refuse, send_request
from startup.processes.quick_end import end_now
from startup.processes.state import refresh_libraries, take_descriptors

OWN_PACKAGES_MODULE: Final = "vllm_cli.own_packages"
"""Every new program imports this module first, so a user's `server.py` cannot replace our `server`."""

_NO_LEAK_WARNINGS: Final = "ignore::UserWarning:multiprocessing.resource_tracker"

START_PROGRAM: Final = Name("multiprocessing.util", "spawnv_passfds", ("path", "args", "passfds"))
"""Starts a program in which only the files of `passfds` are open, under the same numbers."""
EXIT_FUNCTION: Final = Name("multiprocessing.util", "_exit_function", ())
_OUTPUT: Final = (1, 2)
_COMMAND_LINE: Final = b"vllm-cli dormant forkserver\0"
"""`ps` shows the dormant process with this command line, so that it does not look like the server."""


@contextmanager
def without_main_module() -> Iterator[None]:
    """During the block, multiprocessing's processes import `vllm_cli.own_packages` instead of the script."""
    main = vars(sys.modules["__main__"])
    hidden: dict[str, Any] = {name: main.pop(name) for name in ("__file__", "__spec__") if name in main}
    be_own_main_module()
    try:
        yield
    finally:
        main.update(hidden)


def be_own_main_module() -> None:
    """Declares `vllm_cli.own_packages` as this process's main module.

    A fork that gets this name in `multiprocessing.spawn.prepare` imports no other main module.
    """
    sys.modules["__main__"].__spec__ = ModuleSpec(OWN_PACKAGES_MODULE, None)


@contextmanager
def without_group_signals() -> Iterator[None]:
    """Blocks the group signals in all processes that the block starts.

    Starts multiprocessing's resource tracker first, because its start unblocks SIGINT and SIGTERM in this
    process, even if they were blocked before (`ResourceTracker.ensure_running`).
    """
    start_resource_tracker()
    with group_signals.blocked():
        yield


def start_resource_tracker() -> None:
    """Starts multiprocessing's resource tracker unless it runs. It cleans up after processes that have ended.

    The tracker logs no warnings, because these would be the last lines of the output after a crash.
    """
    sys.warnoptions.append(_NO_LEAK_WARNINGS)
    try:
        with group_signals.blocked():
            resource_tracker.ensure_running()
    finally:
        sys.warnoptions.remove(_NO_LEAK_WARNINGS)


class _Dormant(NamedTuple):
    pid: int
    connection: socket.socket
    at_import: Mapping[str, str]


class _ThisProcess:
    dormant: _Dormant | None = None
    """Set until it gets a program or is discarded."""


_this: Final = _ThisProcess()


def fork_dormant(close_in_child: Callable[[], None], at_import: Mapping[str, str]) -> None:
    """Forks the dormant process. Call it while this process has only its main thread.

    The fork calls `close_in_child`, which closes the files that only this process should have open.
    `at_import` has the environment variables that were set during the imports.
    """
    load_libc()  # libffi 3.8 opens a file on import: otherwise only the fork would, at one of our numbers
    ours, theirs = socket.socketpair()
    parent_pid = os.getpid()
    with group_signals.blocked():  # like multiprocessing's new programs, which unblock them after their imports
        pid = os.fork()
        if pid == 0:
            death_pipe.follow_parent(parent_pid)
            ours.close()
            theirs = move_socket_up(theirs)
            close_in_child()
            replace_command_line(_COMMAND_LINE)
            before = environment.snapshot()
            run_program(theirs, lambda request: _become(request, theirs, before))
    theirs.close()
    _this.dormant = _Dormant(pid, ours, at_import)


def dormant_pid() -> int | None:
    """The pid of the dormant process. None if it is not forked yet, has got a program, or was discarded."""
    return None if _this.dormant is None else _this.dormant.pid


def discard_dormant(names: Iterable[str] | None = None) -> None:
    """Kills the dormant process, because this start does not use it.

    With `names`, only if one of these variables has changed since the imports.
    """
    if _this.dormant is None:
        return
    if names is not None:
        at_import = _this.dormant.at_import
        if all(at_import.get(name, "") == foreign.text_of(name) for name in names):
            return
    os.kill(_this.dormant.pid, signal.SIGKILL)  # forks of this process may keep the connection open
    os.waitpid(_this.dormant.pid, 0)
    _this.dormant.connection.close()
    _this.dormant = None


def _become(request: "Request", connection: socket.socket, before: Mapping[str, str]) -> None:
    """Gives the dormant process the command line, name and settings that a new program has at its start."""
    connection.close()
    replace_command_line(b"".join(argument + b"\0" for argument in request.arguments))
    with suppress(OSError):
        Path("/proc/self/comm").write_bytes(os.path.basename(request.arguments[0]))  # noqa: PTH119
    refresh_libraries(environment.changes(before, environment.snapshot()))


def start_program(arguments: list[bytes], fds: list[int]) -> int:
    """Runs a Python program with these open files, if possible in the dormant process. Returns the pid."""
    dormant, _this.dormant = _this.dormant, None
    if dormant is not None:
        with dormant.connection as connection, suppress(OSError):  # the dormant process may have been killed
            send_program(connection, arguments, fds)
            return dormant.pid
    return int(START_PROGRAM.get(util)(arguments[0], arguments, fds))


class Request(NamedTuple):
    """A request for a process, as `messages.send_request` sends it."""

    arguments: list[bytes]
    variables: dict[str, str]
    open_fds: dict[int, int]
    """The number in the requesting process -> the descriptor in this process."""
    more: list[list[str]]
    fds: list[int]

    @classmethod
    def receive(cls, connection: socket.socket) -> "Request":
        """Receives a request, in a fork. Raises MessageError or OSError."""
        (arguments, variables, numbers, *more), received = receive(connection)
        moved = list(map(move_up, received))
        open_fds = dict(zip(map(int, numbers), moved, strict=False))
        texts = [[os.fsdecode(text) for text in section] for section in more]
        return cls(arguments, dictionary(variables), open_fds, texts, moved[len(numbers) :])


@contextmanager
def refused_if_it_fails(connection: socket.socket) -> Iterator[None]:
    """In a fork, becomes the requested process in this block. Otherwise refuses the request, and exits."""
    try:
        yield
    except (OSError, ValueError, MessageError, RefusedError) as err:  # also if the requesting process has ended
        refuse(connection, str(err))
        os._exit(1)


def send_program(
    connection: socket.socket, arguments: list[bytes], fds: Iterable[int], texts: Iterable[str] = (), *other_fds: int
) -> None:
    """Sends a program, with this process's variables and output, to a fork that calls `run_program`."""
    open_fds = [*filter(is_open, _OUTPUT), *fds]
    encoded = list(map(os.fsencode, texts))
    send_request(connection, arguments, environment.snapshot(), open_fds, encoded, fds=[*other_fds])


def run_program(connection: socket.socket, begin: Callable[[Request], None]) -> NoReturn:
    """Runs the program that `send_program` sends, until this process ends.

    Calls `begin` before the program. If `begin` fails, the sending process receives the reason.
    """
    exit_code = 1
    try:
        with refused_if_it_fails(connection):
            atexit._clear()  # drops the exit functions of the parent process
            atexit.register(EXIT_FUNCTION.get(util))  # since 3.13, multiprocessing relies on it
            request = Request.receive(connection)
            take_descriptors(request.open_fds, _OUTPUT)
            code = request.arguments.index(b"-c") + 1
            after_code = request.arguments[code + 1 :]
            sys.argv[:] = map(os.fsdecode, (b"-c", *after_code))
            environment.replace_all(request.variables)
            begin(request)
        exec(request.arguments[code], {"__name__": "__main__"})  # the code comes from our parent
        exit_code = 0
    except SystemExit as err:
        exit_code = err.code if isinstance(err.code, int) else 1
    except BaseException:  # noqa: BLE001 - as the interpreter does at the top
        sys.excepthook(*sys.exc_info())
    finally:
        end_now(exit_code)
