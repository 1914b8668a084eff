"""Forks the processes that multiprocessing would start as new programs, with all modules imported already.

For `spawn`, multiprocessing pickles a process object and starts a program that unpickles it. Here a fork of
the forkserver runs that program's code, with the program's environment and open files. A new program can
therefore take the place of a fork that fails.

To request a fork, a process creates a socket pair. It sends one end of the pair to the forkserver, on a
socket that all processes of a start share. The forkserver forks at once, and the fork receives its program
over the pair (`startup.processes.messages`). When the fork ends, the forkserver sends its exit code.
"""

import importlib
import logging
import os
import signal
import socket
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from multiprocessing import get_context, popen_forkserver, popen_spawn_posix, process, spawn, util
from multiprocessing.connection import wait
from typing import Any, Final, NamedTuple

from base.machine.descriptors import low_numbers_taken, move_socket_up, move_up
from base.machine.gpu_driver import initialized_driver
from base.machine.processes import is_alive, stat_fields
from envs import environment
from startup.hook import Name, Text
from startup.processes import group_signals, interpreter
from startup.processes.death_pipe import follow_parent
from startup.processes.forks import Forks
from startup.processes.messages import (
    MessageError,
    RefusedError,
    agree_to_fork,
    close_all,
    receive,
    refuse,
    wait_for_agreement,
)
from startup.processes.new_program import (
    EXIT_FUNCTION,
    OWN_PACKAGES_MODULE,
    START_PROGRAM,
    Request,
    be_own_main_module,
    run_program,
    send_program,
    start_program,
    without_group_signals,
    without_main_module,
)

_UNPICKLES: Final = "--multiprocessing-fork"
"""The last argument on the command line of a program that unpickles a process object."""
NEEDS: Final = (
    START_PROGRAM,
    EXIT_FUNCTION,
    Text("multiprocessing.spawn", rf"'-c', prog, '{_UNPICKLES}'\]", "the arguments of a new program"),
    Name("multiprocessing.popen_spawn_posix", "Popen"),
    Name("multiprocessing.popen_forkserver", "Popen"),
    Name("multiprocessing.popen_fork", "Popen.poll", ("flag",)),
)
"""The parts of multiprocessing that are needed to run `spawn` programs in forks and to report their ends."""

logger = logging.getLogger(__name__)

_WITHOUT_WORKING_FOLDER: Final = {"PYTHONSAFEPATH": "1"}
"""Keeps the working folder off the forkserver's import path, where `python -c` would put it."""
_REQUEST: Final = b"f"
_REFUSABLE: Final = b"r"
"""A request for a process that could also run as a new program."""
_STATUS_S: Final = 1.0
"""Seconds to wait for the exit code of a process that has ended."""
_TRIAL_S: Final = 10.0
LOST: Final = 255
"""The reported exit code of a process if its real exit code cannot be found out."""
_start_program: Final = START_PROGRAM.get(util)

_POLL_S: Final = 0.5
_MOST_IDLE_POLLS: Final = 120
"""The most polls in a row without progress. The limit is high, because a network disk can delay an import."""
_MOST_STOPPED_POLLS: Final = 20
"""The most polls in a row that find the forkserver stopped. Job control stops the polling process, too."""
_STOPPED: Final = ("T", "t")


class _Server(NamedTuple):
    pid: int
    link: socket.socket


class _ThisProcess:
    """What `install` and the start of the forkserver set in this process. Forks inherit it."""

    server: _Server | None = None
    begin: Callable[[list[str], list[int]], None] | None = None
    on_end: Callable[[int, int], None] | None = None
    refusal: str | None = None
    """Why forks of this process cannot use the GPUs. Set only in the forkserver."""


_this: Final = _ThisProcess()
_starting = threading.local()
_logged: Final[set[object]] = {""}
"""The logged reasons why a new program was started instead of a fork. Each reason is logged once."""


class ForkError(OSError):
    """The forkserver has not forked a process. The message names the reason."""


class NoForkserverError(ForkError):
    """The forkserver has exited or does not answer. A process logs the first of these errors only."""


class ForkedPopen(popen_spawn_posix.Popen):
    """A multiprocessing process that the forkserver forks. Its exit code comes from the forkserver."""

    def __init__(self, process_obj: process.BaseProcess) -> None:
        self.name = process_obj.name
        self._connection: socket.socket | None = None
        self._reading = threading.Lock()
        _starting.popen = self
        try:
            super().__init__(process_obj)
        finally:
            _starting.popen = None

    def why_not_forked(self) -> str | None:
        """Why the process must be a new program. Empty: no reason is to be logged. None: it may be forked."""
        return None if _this.server else ""

    def may_be_new_program(self) -> bool:
        """Whether a new program may replace the fork. False except on the main thread.

        The kernel may end a new program when the thread that started the program ends.
        """
        return threading.current_thread() is threading.main_thread()

    def extras(self) -> tuple[Sequence[str], Sequence[int]]:
        """Further texts and file descriptors, which the fork passes to the function `begin` of `install`."""
        return (), ()

    def start(self, path: Any, arguments: Any, fds: Any) -> int:
        """Runs the command line `arguments` in a fork, or else in a new program. Returns the pid."""
        try:
            if (reason := self.why_not_forked()) is not None:
                raise ForkError(reason)
            texts, other_fds = self.extras()
            request = _REFUSABLE if self.may_be_new_program() else _REQUEST
            encoded = [os.fsencode(argument) for argument in arguments]
            pid, self._connection = _fork(request, encoded, fds, texts, other_fds)
        except ForkError as err:
            if not self.may_be_new_program():
                raise
            kind = NoForkserverError if isinstance(err, NoForkserverError) else str(err)
            if kind not in _logged:
                _logged.add(kind)
                logger.warning("%s is started as a new program instead of forked: %s", self.name, err)
            return self.start_program(path, arguments, fds)
        return pid

    def start_program(self, path: Any, arguments: Any, fds: Any) -> int:
        """Runs the command line `arguments` in a new program. Returns the pid."""
        return int(_start_program(path, arguments, fds))

    def poll(self, flag: int = os.WNOHANG) -> int | None:
        if self._connection is None:
            return super().poll(flag)
        timeout_s = 0 if flag == os.WNOHANG else None
        if self.returncode is None and wait([self.sentinel], timeout=timeout_s):
            with self._reading:  # another thread may have read it
                if self.returncode is None:
                    self.returncode = self._exit_code(self._connection)
        return self.returncode

    def _exit_code(self, connection: socket.socket) -> int:
        """Returns the exit code from the forkserver, or from the kernel if this process is the parent now."""
        connection.settimeout(_STATUS_S)
        with connection, suppress(OSError, MessageError, ValueError):
            (_, code), *_ = receive(connection)[0]
            return int(code)
        with suppress(ChildProcessError):
            _, status = os.waitpid(self.pid, os.WNOHANG)
            return os.waitstatus_to_exitcode(status)
        return LOST


def install(
    popen: type[ForkedPopen] = ForkedPopen,
    begin: Callable[[list[str], list[int]], None] | None = None,
    on_end: Callable[[int, int], None] | None = None,
) -> None:
    """Makes this process and its forks start all `spawn` and `forkserver` processes with the class `popen`.

    Args:
        popen: replaces the classes that multiprocessing has for these two start methods.
        begin: called in a fork before it runs its program, with `extras` of the requesting process.
        on_end: called in the forkserver when a fork has ended, with its pid and exit code.
    """
    _this.begin, _this.on_end = begin, on_end
    popen_spawn_posix.Popen = popen_forkserver.Popen = popen  # type: ignore[misc,assignment]
    START_PROGRAM.replace(util, _start_or_fork)


def _start_or_fork(path: Any, arguments: Any, fds: Any) -> Any:
    """Replaces multiprocessing's `spawnv_passfds`. Passes only programs of a `ForkedPopen` to its `start`."""
    popen = getattr(_starting, "popen", None)
    start = _start_program if popen is None or arguments[-1] != _UNPICKLES else popen.start
    return start(path, arguments, fds)


def ensure_forkserver(preload_module: str) -> None:
    """Starts the forkserver unless it was started before. The forkserver imports `preload_module`.

    Call this function on the main thread, because the forkserver ends with the thread that started it.

    Raises:
        OSError: the forkserver cannot be started, or the trial fork of an untested Python fails.
    """
    if _this.server is None:
        install()
        if not interpreter.is_tested():
            _try_fork()
        _start_forkserver(preload_module)


def _try_fork() -> None:
    """Starts a forkserver without imports for one trial fork. Raises OSError if the trial fails."""
    _start_forkserver(interpreter.__name__)
    try:
        with without_main_module():
            child: Any = get_context("spawn").Process(target=os.getpid)
            child.start()
        child.join(_TRIAL_S)
        fault = None if child.exitcode == 0 else f"it ended with exit code {child.exitcode}"
    except Exception as err:  # noqa: BLE001 - whatever multiprocessing has changed
        fault = repr(err)
    finally:
        kill()
        _this.server = None
    if fault is not None:
        raise OSError(f"{interpreter.name()} is not tested, and a trial process fails: {fault}")


def _start_forkserver(preload_module: str) -> None:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with theirs, ExitStack() as stack:
        stack.enter_context(without_group_signals())
        stack.enter_context(environment.overlaid(_WITHOUT_WORKING_FOLDER))
        call = f"main({theirs.fileno()}, {preload_module!r}, {os.getpid()})"
        code = f"import {OWN_PACKAGES_MODULE}; from {__name__} import main; {call}"
        command = spawn.get_command_line()[:-2]
        arguments = [os.fsencode(argument) for argument in (*command, code)]
        pid = start_program(arguments, [theirs.fileno()])
    _this.server = _Server(pid, move_socket_up(ours))


def is_running() -> bool:
    """Whether the forkserver of this start runs."""
    return _this.server is not None and is_alive(_this.server.pid)


def kill() -> None:
    """Kills the forkserver, even if it is stopped, so that no process waits for its answers any longer."""
    if _this.server is not None and is_running():
        with suppress(ProcessLookupError, ChildProcessError):
            os.kill(_this.server.pid, signal.SIGKILL)
            os.waitpid(_this.server.pid, 0)


def _fork(
    request: bytes, arguments: list[bytes], fds: Sequence[int], texts: Sequence[str], other_fds: Sequence[int]
) -> tuple[int, socket.socket]:
    """Requests a fork. Returns its pid and the connection that receives its exit code. Raises ForkError."""
    assert _this.server is not None
    if not is_running():
        raise NoForkserverError("the forkserver has exited")
    ours, theirs = socket.socketpair()
    try:
        with theirs:
            socket.send_fds(_this.server.link, [request], [theirs.fileno()])
        send_program(ours, arguments, fds, texts, _this.server.link.fileno(), *other_fds)
        with ended_if_it_hangs(_this.server.pid):
            pid, _ = agree_to_fork(ours)
    except RefusedError as err:
        ours.close()
        raise ForkError(str(err)) from err
    except (OSError, MessageError, ValueError) as err:
        ours.close()
        raise NoForkserverError(f"the forkserver does not answer ({err})") from err
    return pid, ours


def refuse_forks(reason: str) -> None:
    """Makes this forkserver refuse to fork processes that could also be new programs."""
    _this.refusal = reason


def main(fd: int, preload_module: str, launcher_pid: int) -> None:
    """The forkserver's program.

    Args:
        fd: the socket for requests. It reaches its end of file when no process is left to send requests.
        preload_module: the module whose import prepares the forks.
        launcher_pid: the process that has started this one, and with which this one ends.
    """
    follow_parent(launcher_pid)
    link = move_socket_up(socket.socket(fileno=fd))
    null = os.open(os.devnull, os.O_RDONLY)
    os.dup2(null, 0)
    os.close(null)
    install()
    try:
        with low_numbers_taken():
            importlib.import_module(preload_module)
    except Exception as err:  # noqa: BLE001 - a module may raise anything; processes are new programs then
        sys.exit(f"vllm-cli: the forkserver's imports failed: {err!r}")
    if _this.refusal is None and (driver := initialized_driver()) is not None:
        refuse_forks(f"an import of the forkserver has initialized {driver}, which no fork can do again")
    be_own_main_module()
    server_pid = os.getpid()
    connection = _serve(link)
    run_program(connection, lambda request: _take_over(request, connection, server_pid))


def _serve(link: socket.socket) -> socket.socket:
    """Forks a process for each request. Returns only in the forks."""
    forks = Forks(_this.on_end)
    while True:
        if link.fileno() not in forks.wait(link.fileno())[0]:
            continue
        content, fds, _, _ = socket.recv_fds(link, len(_REQUEST), 1)
        if not content:
            os._exit(0)
        connection = socket.socket(fileno=move_up(fds[0]))
        if content == _REFUSABLE and _this.refusal is not None:
            _refuse(connection, _this.refusal)
            continue
        with suppress(OSError):  # the requesting process finds the connection closed
            if forks.fork(connection, link):
                return connection


def _refuse(connection: socket.socket, reason: str) -> None:
    """Refuses a request without a fork, because this process has initialized a driver."""
    with connection, suppress(OSError, MessageError):
        close_all(receive(connection)[1])
        refuse(connection, reason)


def _take_over(request: Request, connection: socket.socket, server_pid: int) -> None:
    link, *fds = request.fds
    (texts,) = request.more
    _this.server = _Server(server_pid, socket.socket(fileno=link))
    if _this.begin is not None:
        _this.begin(texts, fds)
    wait_for_agreement(connection)  # fails if a new program takes its place
    connection.close()


@contextmanager
def ended_if_it_hangs(pid: int) -> Iterator[None]:
    """Kills the forkserver if it does nothing while this block waits for it. The error names the reason."""
    watch = _Watch(pid)
    group_signals.start_thread("forkserver-watch", watch.run)
    try:
        yield
    except Exception as err:
        if watch.reason:
            raise type(err)(f"the forkserver was {watch.reason}, and was killed") from err
        raise
    finally:
        watch.has_ended.set()


class _Watch:
    """Counts polls instead of seconds, so that the count pauses while this process is stopped as well."""

    def __init__(self, pid: int) -> None:
        self.has_ended = threading.Event()
        self.reason = ""
        """Why the forkserver was killed. Empty if it was not killed."""
        self._pid = pid

    def run(self) -> None:
        last, num_polls = "", 0
        while not self.has_ended.wait(_POLL_S):
            try:
                state, *fields = stat_fields(self._pid)
            except (OSError, ValueError):
                return
            now = " ".join(fields[6:13])  # page faults and processor time, also of its children (proc(5))
            num_polls = num_polls + 1 if now == last else 0
            last = now
            if num_polls >= (_MOST_STOPPED_POLLS if state in _STOPPED else _MOST_IDLE_POLLS):
                self.reason = "stopped" if state in _STOPPED else f"idle for {num_polls * _POLL_S:.0f} s"
                with suppress(OSError):
                    os.kill(self._pid, signal.SIGKILL)
                return
