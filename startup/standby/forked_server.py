"""The process that a template process forks: takes over its client's state, then runs the client's command.

It reads the request itself, so that no argument and no variable of it ever is in the template's memory. Until
it has agreed to the start (`ready`) and the client has (`go`), it does nothing that is visible outside.
"""

import os
import select
import signal
import socket
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import Final, NamedTuple, NoReturn

from envs import foreign
from server.machine.command_line import masked_words, replace_command_line
from server.machine.descriptors import is_open, move_socket_up, move_up
from server.machine.processes import process_start_ns
from startup.processes import death_pipe, dormant_forkserver, messages
from startup.processes.library_state import refresh_libraries, renew_authentication_key
from startup.processes.messages import MessageError
from startup.processes.openmp_state import update_openmp
from startup.standby import process_state, state_change
from startup.standby.environment_reads import EnvironmentReads
from startup.standby.freshness import InstalledFiles
from startup.timeline import start_origin

_REQUEST_S = 5.0
"""How long the client may take to send its request, which it does at once."""
_STANDARD: Final = (0, 1, 2)
_SO_PEERPIDFD: Final = 77
"""A pidfd of the process that connected, since Linux 6.5 (unix(7)); Python has no name for it."""


class TemplateFacts(NamedTuple):
    """What the template process knows about itself."""

    pid: int
    at_import: Mapping[str, str]
    """The environment of its imports."""
    reads: EnvironmentReads
    why_cold: Callable[[Sequence[str]], str | None]
    """Why a server with these words after `serve` cannot use the imports, if it cannot."""
    files: InstalledFiles
    import_s: float


class Request(NamedTuple):
    """What the client sends."""

    argv: list[str]
    orig_argv: list[str]
    path: list[str]
    environment: dict[str, str]
    facts: dict[str, str]
    settings: dict[str, str]
    begin_ns: int
    life_fd: int
    """The read end of the client's death pipe."""
    folder_fd: int
    """The client's working folder."""
    open_fds: dict[int, int]
    """The client's descriptors that `exec` keeps: the number there and the number here."""


class _ColdStartError(Exception):
    """The client should start the server itself; the message is the reason."""


class ClientLink:
    """The server's connection to the process that the user started."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection

    def close(self) -> None:
        self._connection.close()

    def report_exit(self, code: int) -> None:
        """The command has returned; the exit code counts even if the template process has ended."""
        self._send(b"exit", str(code).encode())

    def start_again(self, variable: str, value: str) -> NoReturn:
        """Ends this process; the client starts the server itself, with a variable set."""
        self._send(b"again", os.fsencode(variable), os.fsencode(value))
        os._exit(0)

    def _send(self, *words: bytes) -> None:
        with suppress(OSError):
            messages.send(self._connection, list(words))


def take_over(
    connection: socket.socket, client_pid: int, template: TemplateFacts, on_stale: Callable[[str], None]
) -> ClientLink:
    """Returns once this process is the client's server; otherwise it exits.

    Args:
        connection: to the client; nothing has been read from it.
        client_pid: the process at its other end.
        template: of the process that was copied.
        on_stale: called with a reason if the template process must be replaced.
    """
    connection = move_socket_up(connection)
    connection.settimeout(_REQUEST_S)
    try:
        request = _receive_request(connection)
        request = request._replace(facts=request.facts | _shown_facts(connection, client_pid))
        if (change := template.files.find_change()) is not None:
            on_stale(change)
            raise _ColdStartError(f"the standby's imports are out of date: {change}")
        _become_equal(request, template.reads)
        foreign.readdress(client_pid, os.getpid())
        if (reason := template.why_cold(request.argv[2:])) is not None:
            raise _ColdStartError(reason)
        _agree(connection)
    except _ColdStartError as err:
        with suppress(OSError):
            messages.send(connection, [b"cold", os.fsencode(str(err))])
        os._exit(0)
    except (OSError, MessageError):  # the client has gone or is not one of ours
        os._exit(0)
    start_origin.warm = start_origin.WarmOrigin(
        client_begin_ns=process_start_ns(client_pid),
        request_ns=request.begin_ns,
        forked_ns=time.monotonic_ns(),
        saved_s=template.import_s,
        template_pid=template.pid,
    )
    death_pipe.arm(request.life_fd)
    os.close(request.life_fd)
    link = ClientLink(connection)
    start_origin.start_again = link.start_again
    dormant_forkserver.fork_dormant(link.close, template.at_import)
    update_openmp()  # may start a thread
    return link


def _receive_request(connection: socket.socket) -> Request:
    sections, received_fds = messages.receive(connection)
    fds = [move_up(fd) for fd in received_fds]
    try:
        argv, orig_argv, path, environment, facts, settings, numbers = sections
        begin_ns, *open_fds = map(int, numbers)
        life_fd, folder_fd, *received = fds
        return Request(
            argv=[os.fsdecode(word) for word in argv],
            orig_argv=[os.fsdecode(word) for word in orig_argv],
            path=[os.fsdecode(folder) for folder in path],
            environment=messages.dictionary(environment),
            facts=messages.dictionary(facts),
            settings=messages.dictionary(settings),
            begin_ns=begin_ns,
            life_fd=life_fd,
            folder_fd=folder_fd,
            open_fds=dict(zip(open_fds, received, strict=True)),
        )
    except ValueError as err:
        raise MessageError("a malformed request") from err


def _shown_facts(connection: socket.socket, client_pid: int) -> dict[str, str]:
    """What the kernel shows of the client: one in a sandbox could claim to be outside.

    Raises:
        _ColdStartError: the process cannot be seen from here, or is gone and its number may be another one's.
        OSError: it is gone.
    """
    if client_pid == 0:
        raise _ColdStartError("the client's process namespace is not within the standby's")
    try:
        pidfd = connection.getsockopt(socket.SOL_SOCKET, _SO_PEERPIDFD)
    except OSError:  # an older kernel
        pidfd = os.pidfd_open(client_pid)
    try:
        facts = process_state.shown_facts(client_pid)
        poll = select.poll()
        poll.register(pidfd, select.POLLIN)
        if poll.poll(0):
            raise _ColdStartError("the process that connected has ended")
    finally:
        os.close(pidfd)
    return facts


def _become_equal(request: Request, reads: EnvironmentReads) -> None:
    """Makes this process what `exec` would have made of the client; raises _ColdStartError if it cannot."""
    reason = process_state.why_not_equal(request.facts) or reads.why_cold(request.environment)
    if reason is not None:
        raise _ColdStartError(reason)
    os.setsid()
    os.fchdir(request.folder_fd)
    os.close(request.folder_fd)
    _take_descriptors(request.open_fds)
    changed = foreign.replace_all(reads.resulting_environment(request.environment))
    sys.argv[:] = request.argv
    sys.orig_argv[:] = request.orig_argv
    sys.path[:] = request.path
    replace_command_line(masked_words(request.orig_argv))
    reason = state_change.apply(request.settings)
    if reason is not None:
        raise _ColdStartError(reason)
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)  # as in `__main__`, until its slow imports are done
    refresh_libraries(changed)
    renew_authentication_key()


def _take_descriptors(open_fds: Mapping[int, int]) -> None:
    """Gives the client's descriptors the numbers that they have there."""
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
        raise MessageError("the client has not agreed")
    connection.settimeout(None)
