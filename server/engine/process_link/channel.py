"""Frames over a stream socket: four bytes of length (little endian), then a MessagePack message."""

import socket
import struct

_LENGTH = struct.Struct("<I")


class ChannelClosedError(ConnectionError):
    """The other process closed the connection or exited."""


def frame(payload: bytes) -> bytes:
    """A message with its header."""
    return _LENGTH.pack(len(payload)) + payload


def read_length(header: bytes) -> int:
    """The message's length from the first `HEADER_BYTES` of its frame."""
    return int(_LENGTH.unpack(header)[0])


HEADER_BYTES = _LENGTH.size


class BlockingChannel:
    """The engine's end of the connection. One thread may send while another receives."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        self._connection.setblocking(True)
        self._reader = connection.makefile("rb", buffering=1 << 16)

    def send(self, payload: bytes) -> None:
        """Sends one message; raises ChannelClosedError once the API process has closed the connection."""
        try:
            self._connection.sendall(frame(payload))
        except OSError as err:
            raise ChannelClosedError("the API process closed the connection") from err

    def receive(self) -> bytes:
        """The next message; raises ChannelClosedError at the end of the stream."""
        return self._read(read_length(self._read(HEADER_BYTES)))

    def close(self) -> None:
        """Closes both directions, which also unblocks a receiving thread."""
        self._connection.close()

    def _read(self, num_bytes: int) -> bytes:
        try:
            data: bytes = self._reader.read(num_bytes)
        except OSError as err:
            raise ChannelClosedError("the connection to the API process broke") from err
        if len(data) < num_bytes:
            raise ChannelClosedError("the API process closed the connection")
        return data
