"""Messages between processes of this program, and the conversation in which a process requests a fork.

1. The requesting process sends arguments, variables and open files (`send_request`).
2. A fork takes them over, and answers `READY` with its pid (`wait_for_agreement`), or `REFUSED` (`refuse`).
3. The requesting process answers `GO` (`agree_to_fork`). Until then, the fork does nothing that is visible.
4. When the fork has ended, the process that has forked it sends `ENDED` with the exit code.

A message is a version, a length and its sections. A section is a length and byte strings that each end with
NUL. Neither arguments nor variables can contain NUL. Reading a message executes no code, unlike unpickling. A
warm start waits for the import of this module, so the module imports little.
"""

import os
import socket

VERSION = 2
READY = b"ready"
REFUSED = b"refused"
GO = b"go"
ENDED = b"ended"
MAX_FDS = 250
"""The most file descriptors of one message. The kernel's limit is 253 (unix(7), SCM_MAX_FD)."""

_MAX_BYTES = 16 << 20
"""The longest message, in bytes. All arguments and variables fit, because `exec` accepts at most 6 MiB."""
_MAX_SECTIONS = 16
_LENGTH_BYTES = 4


class MessageError(Exception):
    """A message is malformed, too long or incomplete, or has another version."""


class RefusedError(Exception):
    """A fork does not become the requested process. The message is the reason."""


def send_request(
    connection: socket.socket,
    arguments: list[bytes],
    variables: dict[str, str],
    open_fds: list[int],
    *more: list[bytes],
    fds: list[int],
) -> None:
    """Requests a process with this command line and these variables. `open_fds` keep their numbers."""
    numbers = [b"%d" % number for number in open_fds]
    send(connection, arguments, pairs(variables), numbers, *more, fds=[*open_fds, *fds])


def agree_to_fork(connection: socket.socket) -> tuple[int, list[int]]:
    """Waits for the answer to a request, and lets the fork begin. Returns the fork's pid and descriptors.

    Raises:
        RefusedError: there is no such fork.
        MessageError, OSError, ValueError: the answer is not valid, or does not come.
    """
    ((what, detail), *_), fds = receive(connection)
    if what != READY:
        close_all(fds)
        reason = detail.decode(errors="replace")
        raise RefusedError(f"the fork ended with exit code {reason}" if what == ENDED else reason)
    pid = int(detail)
    send(connection, [GO])
    return pid, fds


def wait_for_agreement(connection: socket.socket, fds: list[int] | None = None) -> None:
    """Answers a request in the fork. Raises MessageError or OSError unless the requesting process agrees."""
    send(connection, [READY, b"%d" % os.getpid()], fds=fds)
    if receive(connection)[0] != [[GO]]:
        raise MessageError("the requesting process has not agreed")


def refuse(connection: socket.socket, reason: str) -> None:
    """Answers a request: there will be no such process."""
    try:
        send(connection, [REFUSED, os.fsencode(reason)])
    except OSError:  # the requesting process has ended
        return


def send(connection: socket.socket, *sections: list[bytes], fds: list[int] | None = None) -> None:
    """Sends a message with file descriptors. Raises OSError if the receiver has ended or does not read."""
    message = encode(*sections)
    num_sent = socket.send_fds(connection, [message], fds) if fds else 0
    if num_sent < len(message):  # an empty rest fails if the receiver has closed after reading the message
        connection.sendall(message[num_sent:])


def encode(*sections: list[bytes]) -> bytes:
    """Encodes a message without descriptors."""
    bodies = [b"".join(item + b"\0" for item in section) for section in sections]
    content = b"".join(_number(len(body)) + body for body in bodies)
    return _number(VERSION) + _number(len(content)) + content


def receive(connection: socket.socket) -> tuple[list[list[bytes]], list[int]]:
    """Receives one message. Returns its sections and file descriptors.

    Raises:
        MessageError: the message is not valid. Its descriptors are closed.
        OSError: the connection is broken or the timeout has passed.
    """
    head_bytes = 2 * _LENGTH_BYTES
    head, fds, flags, _ = socket.recv_fds(connection, head_bytes, MAX_FDS, socket.MSG_CMSG_CLOEXEC)
    try:
        if flags & socket.MSG_CTRUNC:
            raise MessageError("more than the allowed number of file descriptors")
        head += _receive_exactly(connection, head_bytes - len(head)) if head else b""
        if not head:
            raise MessageError("the other side has closed the connection")
        version, length = _to_number(head[:_LENGTH_BYTES]), _to_number(head[_LENGTH_BYTES:])
        if version != VERSION:
            raise MessageError(f"version {version} instead of {VERSION}")
        if length > _MAX_BYTES:
            raise MessageError(f"a message of {length} bytes")
        return _split(_receive_exactly(connection, length)), fds
    except (MessageError, OSError):
        close_all(fds)
        raise


def close_all(fds: list[int]) -> None:
    """Closes the file descriptors of a message."""
    for fd in fds:
        os.close(fd)


def pairs(items: dict[str, str]) -> list[bytes]:
    """Returns a section that holds the dictionary."""
    return [f"{name}={value}".encode(errors="surrogateescape") for name, value in items.items()]


def dictionary(section: list[bytes]) -> dict[str, str]:
    """Returns the dictionary in a section of `pairs`. Raises MessageError for an item without `=`."""
    items = {}
    for item in section:
        name, separator, value = item.decode(errors="surrogateescape").partition("=")
        if not separator:
            raise MessageError("an item without a value")
        items[name] = value
    return items


def _split(content: bytes) -> list[list[bytes]]:
    sections: list[list[bytes]] = []
    position = 0
    while position < len(content):
        begin = position + _LENGTH_BYTES
        position = begin + _to_number(content[begin - _LENGTH_BYTES : begin])
        body = content[begin:position]
        if position > len(content) or (body and body[-1]) or len(sections) >= _MAX_SECTIONS:
            raise MessageError("a malformed section")
        sections.append(body.split(b"\0")[:-1])
    return sections


def _receive_exactly(connection: socket.socket, num_bytes: int) -> bytes:
    parts = bytearray()
    while len(parts) < num_bytes:
        part = connection.recv(min(num_bytes - len(parts), 1 << 20))
        if not part:
            raise MessageError("an incomplete message")
        parts += part
    return bytes(parts)


def _number(value: int) -> bytes:
    return value.to_bytes(_LENGTH_BYTES, "big")


def _to_number(data: bytes) -> int:
    return int.from_bytes(data, "big")
