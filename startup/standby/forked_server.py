"""The process that a template process forks. It takes over the front process's state, then runs its command.

The front process is the process that the user has started. The template process has imported the server's
modules. The forked process reads the front process's request itself, so that arguments and variables of the
request are never in the template process's memory. It first sends `ready` and waits until the front process
answers `go`. Before this answer, nothing that it does is visible outside.
"""

import locale
import os
import select
import socket
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import Final, NamedTuple, NoReturn

from base.machine.command_line import masked_words, replace_command_line
from base.machine.descriptors import is_open, move_socket_up, move_up
from base.machine.processes import process_start_ns
from envs import foreign
from startup.ground import start_origin
from startup.ground.processes import death_pipe, messages, new_program
from startup.ground.processes.messages import MessageError
from startup.ground.processes.state import refresh_libraries, renew_authentication_key
from startup.standby import process_state
from startup.standby.front_process import interpreter_state
from startup.standby.import_state import ImportEnvironment, InstalledFiles

_REQUEST_S = 5.0
"""The limit for the front process's request, in seconds. The front process sends it at once."""
_STANDARD: Final = (0, 1, 2)
_STREAMS: Final = ("stdin", "stdout", "stderr")
_SO_PEERPIDFD: Final = 77
"""The socket option for a pidfd of the connected process (unix(7), Linux 6.5). Python has no name for it."""


class TemplateFacts(NamedTuple):
    """Facts about the template process."""

    pid: int
    at_import: Mapping[str, str]
    """The template's variables after its imports. A dormant forkserver is used only if they are equal."""
    environment: ImportEnvironment
    why_cold: Callable[[Sequence[str]], str | None]
    """Returns why a server with these words after `serve` cannot use the imports, or None."""
    files: InstalledFiles
    import_s: float


class Request(NamedTuple):
    """The front process's request for a server."""

    argv: list[str]
    orig_argv: list[str]
    path: list[str]
    environment: dict[str, str]
    interpreter: dict[str, str]
    """Properties of the front process's interpreter, which this process's interpreter must have, too."""
    locale: str
    streams: list[str]
    """Error handler and line buffering of each standard stream. Empty for a closed stream."""
    begin_ns: int
    life_fd: int
    """The read end of the front process's death pipe."""
    folder_fd: int
    open_fds: dict[int, int]
    """Descriptors that `exec` keeps: the number in the front process -> the number in this process."""


class _ColdStartError(Exception):
    """The front process must start the server itself. The message is the reason."""


class FrontLink:
    """The server's connection to the front process."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection

    def close(self) -> None:
        self._connection.close()

    def report_exit(self, code: int) -> None:
        """Reports the command's exit code. The front process uses it if the template process has ended."""
        self._send(b"exit", str(code).encode())

    def start_again(self, variable: str, value: str, *words: str) -> NoReturn:
        """Ends this process. The front process then starts the server cold, with this variable and words."""
        self._send(b"again", *map(os.fsencode, (variable, value, *words)))
        os._exit(0)

    def _send(self, *words: bytes) -> None:
        with suppress(OSError):
            messages.send(self._connection, list(words))


def take_over(
    connection: socket.socket, front_pid: int, template: TemplateFacts, on_stale: Callable[[str], None]
) -> FrontLink:
    """Makes this process the server, then returns. Exits if the process cannot become the server.

    Call this before anything is read from the connection to the front process. `on_stale` is called with a
    reason if the template process must be replaced.
    """
    connection = move_socket_up(connection)
    connection.settimeout(_REQUEST_S)
    try:
        request = _receive_request(connection)
        if (change := template.files.find_change()) is not None:
            on_stale(change)
            raise _ColdStartError(f"the standby's imports are out of date: {change}")
        _become_equal(request, connection, front_pid, template.environment)
        foreign.readdress(front_pid, os.getpid())
        if (reason := template.why_cold(request.argv[2:])) is not None:
            raise _ColdStartError(reason)
        _agree(connection)
    except _ColdStartError as err:
        with suppress(OSError):
            messages.send(connection, [b"cold", os.fsencode(str(err))])
        os._exit(0)
    except (OSError, MessageError):  # the front process has gone, or is not one of ours
        os._exit(0)
    start_origin.warm = start_origin.WarmOrigin(
        front_pid=front_pid,
        front_begin_ns=process_start_ns(front_pid),
        request_ns=request.begin_ns,
        forked_ns=time.monotonic_ns(),
        saved_s=template.import_s,
        template_pid=template.pid,
    )
    death_pipe.arm(request.life_fd)
    os.close(request.life_fd)
    link = FrontLink(connection)
    start_origin.start_again = link.start_again
    new_program.fork_dormant(link.close, template.at_import)
    return link


def _receive_request(connection: socket.socket) -> Request:
    sections, received_fds = messages.receive(connection)
    fds = [move_up(fd) for fd in received_fds]
    try:
        argv, orig_argv, path, environment, interpreter, (ctype, *streams), numbers = sections
        begin_ns, *open_fds = map(int, numbers)
        life_fd, folder_fd, *received = fds
        return Request(
            argv=[os.fsdecode(word) for word in argv],
            orig_argv=[os.fsdecode(word) for word in orig_argv],
            path=[os.fsdecode(folder) for folder in path],
            environment=messages.dictionary(environment),
            interpreter=messages.dictionary(interpreter),
            locale=os.fsdecode(ctype),
            streams=[stream.decode() for stream in streams],
            begin_ns=begin_ns,
            life_fd=life_fd,
            folder_fd=folder_fd,
            open_fds=dict(zip(open_fds, received, strict=True)),
        )
    except ValueError as err:
        raise MessageError("a malformed request") from err


def _become_equal(request: Request, connection: socket.socket, front_pid: int, environment: ImportEnvironment) -> None:
    """Gives this process all properties of the front process that `exec` would have kept.

    Raises:
        _ColdStartError: a property cannot be taken over.
        OSError: the front process has ended.
    """
    _raise_reason(process_state.first_difference(request.interpreter, interpreter_state()))
    _raise_reason(environment.why_cold(request.environment))
    with _ensured_to_run(connection, front_pid):
        _raise_reason(process_state.why_not_equal(front_pid))
        os.setsid()
        os.fchdir(request.folder_fd)
        os.close(request.folder_fd)
        _take_descriptors(request.open_fds)
        _raise_reason(process_state.take_over(front_pid))
    changed = foreign.replace_all(environment.applied_to(request.environment))
    sys.argv[:] = request.argv
    sys.orig_argv[:] = request.orig_argv
    sys.path[:] = request.path
    replace_command_line(masked_words(request.orig_argv))
    _set_text_layer(request)
    refresh_libraries(changed)
    renew_authentication_key()


@contextmanager
def _ensured_to_run(connection: socket.socket, pid: int) -> Iterator[None]:
    """Makes sure that the process `pid` at the connection's other end runs while the block examines it.

    Raises:
        _ColdStartError: the process is not visible from here. Or it has ended, so that another process may
            have its pid.
    """
    if pid == 0:
        raise _ColdStartError("its process namespace is not within the standby's")
    try:
        pidfd = connection.getsockopt(socket.SOL_SOCKET, _SO_PEERPIDFD)
    except OSError:  # an older kernel
        pidfd = os.pidfd_open(pid)
    pidfd = move_up(pidfd)
    yield
    poll = select.poll()
    poll.register(pidfd, select.POLLIN)
    if poll.poll(0):
        raise _ColdStartError("the process that connected has ended")
    os.close(pidfd)


def _raise_reason(reason: str | None) -> None:
    if reason is not None:
        raise _ColdStartError(reason)


def _set_text_layer(request: Request) -> None:
    try:
        locale.setlocale(locale.LC_CTYPE, request.locale)
        for name, how in zip(_STREAMS, request.streams, strict=True):
            _set_stream(name, how)
    except (locale.Error, LookupError, ValueError, OSError) as err:
        raise _ColdStartError(f"the locale or the standard streams could not be taken over: {err}") from err


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


def _take_descriptors(open_fds: Mapping[int, int]) -> None:
    """Moves the received descriptors to the numbers that they have in the front process."""
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    for number in _STANDARD:
        if number not in open_fds:
            os.close(number)
    for number, fd in open_fds.items():
        if number not in _STANDARD and is_open(number):
            raise _ColdStartError(f"file descriptor {number} is in use by a library")
        os.dup2(fd, number)
        os.close(fd)


def _agree(connection: socket.socket) -> None:
    pidfd = os.pidfd_open(os.getpid())
    messages.send(connection, [b"ready", str(os.getpid()).encode()], fds=[pidfd])
    os.close(pidfd)
    if messages.receive(connection)[0] != [[b"go"]]:
        raise MessageError("the front process has not agreed")
    connection.settimeout(None)
