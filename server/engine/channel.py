"""Frames of MessagePack over a stream socket: four bytes of length (little endian), then the message."""

import socket
import struct

_LENGTH = struct.Struct("<I")


class ChannelClosedError(ConnectionError):
    """The other side is gone."""


def frame(payload: bytes) -> bytes:
    """One message as it goes over the wire."""
    return _LENGTH.pack(len(payload)) + payload


def read_length(header: bytes) -> int:
    """The length that a frame's first `HEADER_BYTES` tell."""
    return int(_LENGTH.unpack(header)[0])


HEADER_BYTES = _LENGTH.size


class BlockingChannel:
    """The engine's end. One thread may send while another receives."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        self._connection.setblocking(True)
        self._reader = connection.makefile("rb", buffering=1 << 16)

    def send(self, payload: bytes) -> None:
        """Sends one message; raises ChannelClosedError when the other side is gone."""
        try:
            self._connection.sendall(frame(payload))
        except OSError as err:
            raise ChannelClosedError("the API process closed the connection") from err

    def receive(self) -> bytes:
        """The next message; raises ChannelClosedError at the end of the stream."""
        return self._read(read_length(self._read(HEADER_BYTES)))

    def close(self) -> None:
        """Ends both directions, which also wakes a thread that is receiving."""
        self._connection.close()

    def _read(self, num_bytes: int) -> bytes:
        try:
            data: bytes = self._reader.read(num_bytes)
        except OSError as err:
            raise ChannelClosedError("the connection to the API process broke") from err
        if len(data) < num_bytes:
            raise ChannelClosedError("the API process closed the connection")
        return data
