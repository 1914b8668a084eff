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
from envs import foreign
from startup.ground.hooks.hook import Name
from startup.ground.processes import death_pipe, group_signals
from startup.ground.processes.messages import MessageError, dictionary, pairs, receive, send
from startup.ground.processes.quick_end import end_now
from startup.ground.processes.state import refresh_libraries

OWN_PACKAGES_MODULE: Final = "vllm_cli.own_packages"
"""Every new program imports this module first, so a user's `server.py` cannot replace our `server`."""

_NO_LEAK_WARNINGS: Final = "ignore::UserWarning:multiprocessing.resource_tracker"

START_PROGRAM: Final = Name("multiprocessing.util", "spawnv_passfds", ("path", "args", "passfds"))
"""Starts a program in which only the files of `passfds` are open, under the same numbers."""
EXIT_FUNCTION: Final = Name("multiprocessing.util", "_exit_function", ())
_OUTPUT: Final = (1, 2)
_COMMAND_LINE: Final = b"vllm-cli dormant forkserver\0"
"""`ps` shows the dormant process with this command line, so that it does not look like the server."""

_dormant: "_Dormant | None" = None


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


def fork_dormant(close_in_child: Callable[[], None], at_import: Mapping[str, str]) -> None:
    """Forks the dormant process. Call it while this process has only its main thread.

    The fork calls `close_in_child`, which closes the files that only this process should have open.
    `at_import` has the environment variables that were set during the imports.
    """
    global _dormant
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
            run_program(theirs, lambda program: _become(program, theirs))
    theirs.close()
    _dormant = _Dormant(pid, ours, at_import)


def dormant_pid() -> int | None:
    """The pid of the dormant process. None if it is not forked yet, has got a program, or was discarded."""
    return None if _dormant is None else _dormant.pid


def discard_dormant() -> None:
    """Kills the dormant process, because this start needs no forkserver."""
    global _dormant
    if _dormant is not None:
        os.kill(_dormant.pid, signal.SIGKILL)  # forks of this process may keep the connection open
        os.waitpid(_dormant.pid, 0)
        _dormant.connection.close()
        _dormant = None


def differing_variable(names: Iterable[str]) -> str | None:
    """The first of these variables whose value has changed since the imports. None if none has changed."""
    if _dormant is None:
        return None
    return next((n for n in sorted(names) if _dormant.at_import.get(n, "") != foreign.text_of(n)), None)


def _become(program: "Program", connection: socket.socket) -> None:
    """Gives the dormant process the command line, name and settings that a new program has at its start."""
    connection.close()
    replace_command_line(b"".join(word + b"\0" for word in program.words))
    with suppress(OSError):
        Path("/proc/self/comm").write_bytes(os.path.basename(program.words[0]))  # noqa: PTH119
    refresh_libraries(program.changed)


def start_program(words: list[bytes], fds: list[int]) -> int:
    """Runs a Python program with these open files, if possible in the dormant process. Returns the pid."""
    global _dormant
    dormant, _dormant = _dormant, None
    if dormant is not None:
        with dormant.connection as connection, suppress(OSError):  # the dormant process may have been killed
            send_program(connection, words, fds)
            return dormant.pid
    return int(START_PROGRAM.get(util)(words[0], words, fds))


class Program(NamedTuple):
    """The program that a fork runs."""

    words: list[bytes]
    """The program's command line, with Python code after `-c`."""
    changed: dict[str, str]
    """Environment variables whose values differ from the fork's. A removed variable is empty."""
    texts: list[str]
    fds: list[int]
    """The `other_fds` that the caller of `send_program` has added."""


def send_program(
    connection: socket.socket,
    words: list[bytes],
    fds: Iterable[int],
    texts: Iterable[str] = (),
    other_fds: Iterable[int] = (),
) -> None:
    """Sends a program, with this process's variables and output streams, to a fork that calls `run_program`.

    The program's open files keep their numbers, except `other_fds`. Texts must not contain NUL.
    """
    numbered = [*filter(is_open, _OUTPUT), *fds]
    numbers = [str(fd).encode() for fd in numbered]
    send(
        connection,
        words,
        pairs(foreign.snapshot()),
        numbers,
        [text.encode() for text in texts],
        fds=[*numbered, *other_fds],
    )


def run_program(connection: socket.socket, begin: Callable[[Program], None]) -> NoReturn:
    """Runs the program that `send_program` sends, until this process ends.

    Calls `begin` before the program. If `begin` fails, the sending process receives the reason.
    """
    exit_code = 1
    try:
        try:
            program = _receive_program(connection)
            begin(program)
        except (OSError, ValueError, MessageError) as err:  # also raised if the sending process has ended
            with suppress(OSError):
                send(connection, [b"refused", str(err).encode()])
            os._exit(exit_code)
        exec(program.words[program.words.index(b"-c") + 1], {"__name__": "__main__"})  # the code comes from our parent
        exit_code = 0
    except SystemExit as err:
        exit_code = err.code if isinstance(err.code, int) else 1
    except BaseException:  # noqa: BLE001 - as the interpreter does at the top
        sys.excepthook(*sys.exc_info())
    finally:
        end_now(exit_code)


def _receive_program(connection: socket.socket) -> Program:
    atexit._clear()  # drops the exit functions of the parent process
    atexit.register(EXIT_FUNCTION.get(util))  # since 3.13, multiprocessing relies on it
    (words, variables, numbers, texts), fds = receive(connection)
    begin = words.index(b"-c")
    others = _take_files(fds, [int(number) for number in numbers])
    sys.argv[:] = map(os.fsdecode, (words[begin], *words[begin + 2 :]))
    changed = foreign.replace_all(dictionary(variables))
    return Program(words, changed, [text.decode() for text in texts], others)


def _take_files(fds: list[int], numbers: list[int]) -> list[int]:
    """Gives the first descriptors the numbers that the program expects. Returns the other descriptors."""
    moved = [move_up(fd) for fd in fds]
    for stream in (sys.stdout, sys.stderr):
        if stream is not None:
            stream.flush()
    for fd, number in zip(moved, numbers, strict=False):
        if number not in _OUTPUT and is_open(number):
            raise ValueError(f"file descriptor {number} is in use by a library")
        os.dup2(fd, number, inheritable=number in _OUTPUT)
        os.close(fd)
    return moved[len(numbers) :]
