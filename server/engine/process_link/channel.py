"""Frames over a stream socket: four bytes of length (little endian), then a MessagePack message."""

import io
import socket
import struct

_LENGTH = struct.Struct("<I")


class ChannelClosedError(ConnectionError):
    """The other process closed the connection or exited."""


def frame(payload: bytes) -> bytes:
    """A message with its header."""
    return _LENGTH.pack(len(payload)) + payload


def read_length(header: bytes | memoryview) -> int:
    """The message's length from the first `HEADER_BYTES` of its frame."""
    return int(_LENGTH.unpack(header)[0])


HEADER_BYTES = _LENGTH.size


class BlockingChannel:
    """The engine's end of the connection. One thread may send while another receives."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        self._connection.setblocking(True)
        self._reader = io.BufferedReader(connection.makefile("rb", buffering=0), 1 << 16)

    def send(self, payload: bytes) -> None:
        """Sends one message; raises ChannelClosedError once the API process has closed the connection."""
        try:
            self._connection.sendall(frame(payload))
        except OSError as err:
            raise ChannelClosedError("the API process closed the connection") from err

    def receive(self) -> memoryview:
        """The next message; raises ChannelClosedError at the end of the stream."""
        return self.receive_bytes(read_length(self.receive_bytes(HEADER_BYTES)))

    def receive_bytes(self, num_bytes: int) -> memoryview:
        """What follows a message, in memory of its own: aligned for tensors, and writable, or torch warns."""
        data = memoryview(bytearray(num_bytes))
        try:
            is_complete = self._reader.readinto(data) == num_bytes
        except OSError as err:
            raise ChannelClosedError("the connection to the API process broke") from err
        if not is_complete:
            raise ChannelClosedError("the API process closed the connection")
        return data

    def close(self) -> None:
        """Closes both directions, which also unblocks a receiving thread."""
        self._connection.close()
