"""The process that the user starts. Requests a server forked from a template process, or makes a cold start.

Each start waits for the import of this module, so this module imports only modules that a connection needs.
"""

import _locale
import os
import socket
import sys
import time

from envs import environment, foreign
from startup.processes import messages
from startup.processes.messages import RefusedError
from startup.settings.serve_arguments import LauncherLine
from startup.standby import sockets
from startup.standby.sockets import template_kind

TYPE_CHECKING = False  # the import of `typing` would delay the start
if TYPE_CHECKING:
    from startup.port.notify_relay import NotifyRelay

_ACK_S = 0.2
"""Seconds for a standby's answer, which takes a millisecond, or up to 100 ms on a busy machine."""
_VERDICT_S = 0.5
"""Seconds for the forked process's answer, which takes 50 ms, or 250 ms with 8 busy processes per CPU."""
_OWN_S = 2.0
"""Seconds that the start of a router's model waits for the router's own standby, instead of `_ACK_S`.

With 16 busy processes per CPU, a standby's answer took up to 0.22 s.
"""
_REQUIRED_S = 10.0
"""Seconds that the front process waits with `--standby require`, instead of `_ACK_S`."""


def serve_warm(line: LauncherLine) -> int | None:
    """Requests a forked server and forwards signals to it until it ends.

    Returns:
        The exit code of the server, or None for a cold start. If a signal killed the server, this process
        ends by the same signal.
    """
    if line.has_several_models or line.is_behind_router:
        return None  # a router imports little; its servers may be forked
    mode = line.value("--standby") or foreign.text_of("VCLI_STANDBY") or "auto"
    kind = template_kind(line) if mode in ("auto", "require") else None
    if kind is None:
        return None
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
            patience_s = _OWN_S if foreign.text_of("VCLI_STANDBY_FOLDER") else _ACK_S
            _connect(connection, kind, timeout_s=_REQUIRED_S if mode == "require" else patience_s)
            relay = _notify_relay()
            variables = {} if relay is None else {"NOTIFY_SOCKET": relay.address}
            server_pid, server_fd, life_fd = _request(connection, variables)
            from startup.standby.forwarding import follow_server  # noqa: PLC0415 - slow to import for a cold start

            return follow_server(connection, server_pid, server_fd, life_fd, relay)
    except RefusedError as err:
        reason = str(err)
    except FileNotFoundError:
        reason = f"no standby runs for this kind of start ({kind})"
    if mode == "require" and reason:  # without a reason, no warm start is wanted
        from base.exit_codes import START_FAILED  # noqa: PLC0415 - slow to import for a warm start
        from startup.errors import with_code  # noqa: PLC0415 - slow to import for a warm start

        message = f"Error: --standby require: {reason}. Start one with `vllm-cli standby`."
        sys.stderr.write(with_code(message, "standby-unusable") + "\n")
        return START_FAILED
    from startup import start_origin  # noqa: PLC0415 - slow to import for a warm start

    start_origin.cold_reason = reason
    return None


def _connect(connection: socket.socket, kind: str, *, timeout_s: float) -> None:
    """Connects to a template process, which accepts the connection and reads nothing from it.

    Raises:
        FileNotFoundError: no standby runs for this kind of start.
        RefusedError: the template process does not answer, or belongs to another user.
    """
    try:
        connection.settimeout(timeout_s)
        sockets.connect(connection, kind)
        if connection.recv(1) != sockets.ACK:
            raise RefusedError("the standby has no free template process")
        connection.settimeout(max(timeout_s, _VERDICT_S))
    except FileNotFoundError:
        raise
    except OSError as err:
        reason = f"it does not answer in {timeout_s * 1000:g} ms" if isinstance(err, TimeoutError) else str(err)
        raise RefusedError(f"the standby cannot be used: {reason}") from err


def _notify_relay() -> "NotifyRelay | None":
    """Returns a relay for the server's messages to the service manager. None without a service manager."""
    address = foreign.text_of("NOTIFY_SOCKET")
    if address[:1] not in ("/", "@"):
        return None
    from startup.port.notify_relay import NotifyRelay  # noqa: PLC0415 - slow to import for other starts

    try:
        return NotifyRelay(address)
    except OSError:  # the server reports it
        return None


def _request(connection: socket.socket, variables: dict[str, str]) -> tuple[int, int, int]:
    """Requests a server. Returns the server's pid, its pidfd, and the write end of its death pipe.

    `variables` are environment variables that have other values in the server than in this process.

    Raises:
        RefusedError: no server was forked. The message is the reason that the forked process gives.
    """
    begin_ns = time.monotonic_ns()
    life_read_fd, life_fd = os.pipe()
    folder_fd = os.open(".", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    open_fds = _inherited_fds()
    try:
        if len(open_fds) + 2 > messages.MAX_FDS:
            raise RefusedError(f"{len(open_fds)} open file descriptors are inherited")
        messages.send_request(
            connection,
            [os.fsencode(argument) for argument in sys.argv],
            environment.snapshot() | variables,
            open_fds,
            [os.fsencode(argument) for argument in sys.orig_argv],
            [os.fsencode(path) for path in sys.path],
            messages.pairs(interpreter_state()),
            _text_state(),
            [b"%d" % begin_ns],
            fds=[life_read_fd, folder_fd],
        )
        pid, (server_fd,) = messages.agree_to_fork(connection)
        connection.settimeout(None)
    except (OSError, ValueError, messages.MessageError) as err:
        os.close(life_fd)
        timeout_s = connection.gettimeout()
        reason = f"no answer in {timeout_s:g} s" if isinstance(err, TimeoutError) else str(err)
        raise RefusedError(f"the standby has not forked a server: {reason}") from err
    except RefusedError:
        os.close(life_fd)
        raise
    finally:
        os.close(life_read_fd)
        os.close(folder_fd)
    return pid, server_fd, life_fd


def interpreter_state() -> dict[str, str]:
    """The settings that Python reads once, at its start. A forked server must have the same settings.

    UTF-8 mode is left out. Python turns it on if LANG is not set. It makes no difference in a UTF-8 locale.
    """
    encodings = (sys.getfilesystemencoding(), sys.getfilesystemencodeerrors(), _locale.nl_langinfo(_locale.CODESET))
    return {
        "the interpreter": f"{sys.executable} {sys.version}",
        "the prefix": f"{sys.prefix} {sys.base_prefix} {sys.exec_prefix}",
        "the folder of this program": os.path.dirname(os.path.abspath(__file__)),  # noqa: PTH100, PTH120
        "the set of Python's flags": str(sys.flags).replace(f", utf8_mode={sys.flags.utf8_mode}", ""),
        "the set of Python's -X options": repr(sorted(sys._xoptions.items())),
        "the list of Python's warning filters": repr(sys.warnoptions),
        "the character encoding": " ".join(encodings),
        "the use of a Python debugger or profiler": str(bool(sys.gettrace() or sys.getprofile())),
        "the personality": _personality(),
    }


def _personality() -> str:
    """The execution domain (personality(2)) of this process. No other process may read it."""
    try:
        with open("/proc/self/personality") as file:  # noqa: PTH123
            return file.read().strip()
    except OSError:
        return ""


def _text_state() -> list[bytes]:
    """The locale LC_CTYPE, and error handler and line buffering of each standard stream."""
    streams = (sys.stdin, sys.stdout, sys.stderr)
    layers = [f"{stream.errors} {stream.line_buffering:d}" if stream is not None else "" for stream in streams]
    return [os.fsencode(text) for text in (_locale.setlocale(_locale.LC_CTYPE, None), *layers)]


def _inherited_fds() -> list[int]:
    """All descriptors that `exec` would keep, such as those of the standard streams."""
    found = []
    for name in os.listdir("/proc/self/fd"):  # noqa: PTH208
        fd = int(name)
        try:
            if os.get_inheritable(fd):
                found.append(fd)
        except OSError:  # the folder's own descriptor, closed by now
            continue
    return sorted(found)
