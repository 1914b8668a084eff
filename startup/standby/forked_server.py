"""The process that a template process forks. It takes over the front process's state, then runs its command.

The front process is the process that the user has started. The template process has imported the server's
modules. The forked process reads the front process's request itself, so that arguments and variables of the
request are never in the template process's memory. Until the front process agrees
(`startup.processes.messages`), nothing that it does is visible outside.
"""

import locale
import os
import select
import socket
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any, Final, NamedTuple, NoReturn

from base.machine.command_line import masked_arguments, replace_command_line
from base.machine.descriptors import move_socket_up, move_up
from base.machine.processes import process_start_ns
from envs.environment import readdress, replace_all, snapshot
from startup import start_origin
from startup.processes import death_pipe, messages
from startup.processes.messages import RefusedError
from startup.processes.new_program import Request, fork_dormant, refused_if_it_fails
from startup.processes.state import STANDARD, refresh_libraries, take_descriptors
from startup.settings.serve_arguments import LauncherLine
from startup.standby import process_state
from startup.standby.front_process import interpreter_state
from startup.standby.import_state import ImportEnvironment, InstalledFiles

if TYPE_CHECKING:
    from startup.vllm_arguments.vllm_line import VllmLine

_REQUEST_S = 5.0
"""The limit for the front process's request, in seconds. The front process sends it at once."""
_STREAMS: Final = ("stdin", "stdout", "stderr")
_SO_PEERPIDFD: Final = 77
"""The socket option for a pidfd of the connected process (unix(7), Linux 6.5). Python has no name for it."""


class EarlyRead(NamedTuple):
    """The fork's arguments with the file of `--config`, read before the front process agrees."""

    arguments: Any
    """The arguments, which the command takes from here."""
    line: "VllmLine | None" = None
    """The command line of vLLM. None for the embedded engine, or if the arguments have a fault."""
    wants_cold_start: bool = False


class TemplateFacts(NamedTuple):
    """Facts about the template process."""

    pid: int
    environment: ImportEnvironment
    read: Callable[[LauncherLine], EarlyRead]
    why_cold: Callable[["VllmLine | None"], str | None]
    """Returns why a server with this command line cannot use the imports, or None."""
    files: InstalledFiles
    import_s: float


class FrontLink:
    """The server's connection to the front process."""

    def __init__(self, connection: socket.socket, arguments: Any) -> None:
        self._connection = connection
        self.arguments = arguments
        """The arguments after `serve`, as `EarlyRead.arguments`."""

    def close(self) -> None:
        self._connection.close()

    def report_exit(self, code: int) -> None:
        """Reports the command's exit code. The front process uses it if the template process has ended."""
        self._send(b"exit", str(code).encode())

    def start_again(self, variable: str, value: str, *arguments: str) -> NoReturn:
        """Ends this process. The front process then starts the server cold, with this variable, too."""
        self._send(b"again", *map(os.fsencode, (variable, value, *arguments)))
        os._exit(0)

    def _send(self, *arguments: bytes) -> None:
        with suppress(OSError):
            messages.send(self._connection, list(arguments))


def take_over(
    connection: socket.socket, front_pid: int, template: TemplateFacts, on_stale: Callable[[str], None]
) -> FrontLink:
    """Makes this process the server, then returns. Exits if the process cannot become the server.

    Call this before anything is read from the connection to the front process. `on_stale` is called with a
    reason if the template process must be replaced.
    """
    at_import = snapshot()
    connection = move_socket_up(connection)
    connection.settimeout(_REQUEST_S)
    with refused_if_it_fails(connection):
        request = Request.receive(connection)
        *_, (begin_ns,) = request.more
        # First, because outdated code must not examine the rest.
        if (change := template.files.find_change()) is not None:
            on_stale(change)
            raise RefusedError(f"the standby's imports are out of date: {change}")
        _become_equal(request, connection, front_pid, template.environment)
        readdress(front_pid, os.getpid())
        read = template.read(LauncherLine(sys.argv[2:]))
        if read.wants_cold_start:
            raise RefusedError
        _raise_reason(template.why_cold(read.line))
        # Whatever can be refused comes before: once the front process agrees, it makes no cold start itself.
        pidfd = os.pidfd_open(os.getpid())
        messages.wait_for_agreement(connection, [pidfd])
        os.close(pidfd)
        connection.settimeout(None)
    start_origin.warm = start_origin.WarmOrigin(
        front_pid=front_pid,
        front_begin_ns=process_start_ns(front_pid),
        request_ns=int(begin_ns),
        forked_ns=time.monotonic_ns(),
        saved_s=template.import_s,
        template_pid=template.pid,
    )
    death_pipe.arm(request.fds[0])
    os.close(request.fds[0])
    link = FrontLink(connection, read.arguments)
    start_origin.start_again = link.start_again
    fork_dormant(link.close, at_import)
    return link


def _become_equal(request: Request, connection: socket.socket, front_pid: int, environment: ImportEnvironment) -> None:
    """Gives this process all properties of the front process that `exec` would have kept.

    Raises:
        RefusedError: a property cannot be taken over.
        OSError: the front process has ended.
        ValueError: the request is malformed.
    """
    orig_argv, path, interpreter, text_state, _ = request.more
    _, folder_fd = request.fds
    wanted = dict(item.split("=", 1) for item in interpreter)
    _raise_reason(process_state.first_difference(wanted, interpreter_state()))
    _raise_reason(environment.why_cold(request.variables))
    with _ensured_to_run(connection, front_pid):
        _raise_reason(process_state.why_not_equal(front_pid))
        os.setsid()
        os.fchdir(folder_fd)
        os.close(folder_fd)
        take_descriptors(request.open_fds, request.open_fds)
        for number in STANDARD:
            if number not in request.open_fds:
                os.close(number)
        _raise_reason(process_state.take_over(front_pid))
    changed = replace_all(environment.applied_to(request.variables))
    sys.argv[:] = map(os.fsdecode, request.arguments)
    sys.orig_argv[:] = orig_argv
    sys.path[:] = path
    replace_command_line(masked_arguments(orig_argv))
    _set_text_layer(*text_state)
    refresh_libraries(changed)


@contextmanager
def _ensured_to_run(connection: socket.socket, pid: int) -> Iterator[None]:
    """Makes sure that the process `pid` at the connection's other end runs while the block examines it.

    Raises:
        RefusedError: the process is not visible from here. Or it has ended, so that another process may
            have its pid.
    """
    if pid == 0:
        raise RefusedError("its process namespace is not within the standby's")
    try:
        pidfd = connection.getsockopt(socket.SOL_SOCKET, _SO_PEERPIDFD)
    except OSError:  # an older kernel
        pidfd = os.pidfd_open(pid)
    pidfd = move_up(pidfd)
    yield
    # Only afterwards, because the process may have ended while the block read the state of its pid.
    poll = select.poll()
    poll.register(pidfd, select.POLLIN)
    if poll.poll(0):
        raise RefusedError("the process that connected has ended")
    os.close(pidfd)


def _raise_reason(reason: str | None) -> None:
    if reason is not None:
        raise RefusedError(reason)


def _set_text_layer(ctype: str, *streams: str) -> None:
    """Sets the locale, and error handler and line buffering of each stream. Empty for a closed stream."""
    try:
        locale.setlocale(locale.LC_CTYPE, ctype)
        for name, how in zip(_STREAMS, streams, strict=True):
            _set_stream(name, how)
    except (locale.Error, LookupError, ValueError, OSError) as err:
        raise RefusedError(f"the locale or the standard streams could not be taken over: {err}") from err


def _set_stream(name: str, how: str) -> None:
    stream = getattr(sys, name)
    if not how:
        setattr(sys, name, None)
    elif stream is None:
        raise ValueError(f"the standby started with {name} closed")
    else:
        errors, _, is_line_buffered = how.partition(" ")
        if errors != stream.errors:  # fails if a pipe has replaced a file
            stream.reconfigure(errors=errors)
        stream.reconfigure(line_buffering=is_line_buffered == "1")
