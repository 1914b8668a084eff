"""The standby's sockets, in a folder that only this user can enter.

Each template process has a socket, named by its kind, which is the set of modules that it has imported. Each
start waits for the import of this module, so the module imports only modules that a connection needs.
"""

import os
import socket
import stat
import struct
import sys
import zlib
from contextlib import suppress

from envs import foreign
from envs.foreign import expand_home
from startup.processes import messages
from startup.settings.serve_arguments import LauncherLine, is_eager, is_for_information

CONTROL = "standby"
"""The name of the socket on which the standby itself answers."""

ACK = b"\x06"
"""The first byte on a connection. The template process sends it, and the forked process sends all others."""

EMBEDDED = "embedded"
VLLM_EAGER = "vllm-eager"
VLLM_COMPILED = "vllm-compiled"
TEMPLATE_KINDS = (EMBEDDED, VLLM_EAGER, VLLM_COMPILED)
_BACKLOG = 128


def socket_folder() -> str:
    """Returns `$XDG_RUNTIME_DIR/vllm-cli`, or a folder in vLLM's cache folder if this variable is not set.

    The standby of a router uses another folder, which VCLI_STANDBY_FOLDER names.
    """
    if own := foreign.text_of("VCLI_STANDBY_FOLDER"):
        return own
    runtime = foreign.text_of("XDG_RUNTIME_DIR")
    if runtime:
        return f"{runtime}/vllm-cli"
    root = foreign.text_of("VLLM_CACHE_ROOT") or f"{foreign.text_of('XDG_CACHE_HOME') or '~/.cache'}/vllm"
    return f"{expand_home(root)}/vllm_cli/standby"


def open_folder() -> int:
    """Opens the folder for `socket_path`. Raises OSError if it is missing or another user can access it."""
    fd = os.open(socket_folder(), os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    status = os.fstat(fd)
    if status.st_uid != os.geteuid() or stat.S_IMODE(status.st_mode) & 0o077:
        os.close(fd)
        raise PermissionError(f"{socket_folder()} must belong to this user and have mode 0700")
    return fd


def create_folder() -> int:
    """Creates the folder if necessary, and opens it like `open_folder`."""
    folder = socket_folder()
    os.makedirs(os.path.dirname(folder), exist_ok=True)  # noqa: PTH103, PTH120
    with suppress(FileExistsError):
        os.mkdir(folder, 0o700)  # noqa: PTH102
    return open_folder()


def connect(connection: socket.socket, name: str) -> None:
    """Connects to a standby's socket of this name. Raises OSError, for example if another user listens."""
    folder_fd = open_folder()
    try:
        connection.connect(socket_path(folder_fd, name))
    finally:
        os.close(folder_fd)
    if peer_of(connection)[1] != os.geteuid():
        raise PermissionError("it belongs to another user")


def listen(folder_fd: int, name: str, kind: socket.SocketKind) -> socket.socket:
    """Creates the socket of this name. Replaces an earlier one in one step."""
    listener = socket.socket(socket.AF_UNIX, kind)
    temporary = socket_path(folder_fd, f"{name}.{os.getpid()}")
    listener.bind(temporary)
    os.chmod(temporary, 0o600)  # noqa: PTH101 - as the other calls of os here
    listener.listen(_BACKLOG)
    listener.setblocking(False)
    os.rename(temporary, socket_path(folder_fd, name))  # noqa: PTH104
    return listener


def socket_path(folder_fd: int, name: str) -> str:
    """Returns a path for bind(2) and connect(2) that is short enough even if the folder's path is long."""
    return f"/proc/self/fd/{folder_fd}/{file_name(name)}"


def file_name(name: str) -> str:
    """The socket's file name. It depends on protocol version, interpreter and prefix, so standbys coexist."""
    identity = f"{messages.VERSION} {sys.version} {sys.prefix}"
    return f"{zlib.crc32(identity.encode()):08x}-{name}.sock"


def module_folder() -> str | None:
    """The working folder for `python -m vllm_cli`. None if the present folder is the program's own folder.

    Python prefers modules in the working folder, which could otherwise replace the installed program.
    """
    try:
        is_own = os.getcwd() == os.path.realpath(f"{__file__}/../../..")  # noqa: PTH109
    except OSError:  # the folder was deleted
        is_own = False
    return None if is_own else "/"


def peer_of(connection: socket.socket) -> tuple[int, int]:
    """Pid and user id of the other end, at the time of its connect or listen (unix(7), SO_PEERCRED)."""
    pid, uid, _ = struct.unpack("3i", connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
    return pid, uid


def template_kind(line: LauncherLine) -> str | None:
    """The kind of template for the arguments after `serve`. None if the start needs no slow imports."""
    if is_for_information(line.arguments):
        return None
    kind = template_kind_for(line.engine, line)
    # With vLLM, this imports nothing; what vLLM's libraries print at the end of a process is not its output.
    return None if kind != EMBEDDED and line.has("--preflight-only") else kind


def template_kind_for(engine: str, line: LauncherLine) -> str:
    """The kind of template for an engine. vLLM's kinds differ only in whether the compiler is imported."""
    if engine == "embedded":
        return EMBEDDED
    return VLLM_EAGER if is_eager(line.engine_arguments) else VLLM_COMPILED
