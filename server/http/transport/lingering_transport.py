"""Closes a connection within a time limit, so that the client can still read the last response."""

import asyncio
from collections.abc import Callable

_LINGER_S = 5.0
"""How many seconds a connection stays open while the client still sends, or has not ended TLS."""


class LingeringTransport:
    """Wraps a transport for uvicorn. `close` calls `on_close` instead of closing.

    All methods that are not defined here are the methods of the wrapped transport.
    """

    def __init__(
        self, transport: asyncio.Transport, on_close: Callable[[], None], carrier: asyncio.Transport | None = None
    ) -> None:
        """`carrier` is the transport to which a TLS transport writes. It is None without TLS."""
        self._transport = transport
        self._carrier = carrier
        self.write = transport.write
        self.get_extra_info = transport.get_extra_info
        self.pause_reading = transport.pause_reading
        self.resume_reading = transport.resume_reading
        self.close = on_close
        self.is_closed = False
        self._lingering: asyncio.TimerHandle | None = None

    @property
    def num_unsent_bytes(self) -> int:
        """The number of bytes that the kernel has not yet accepted for sending."""
        carried = 0 if self._carrier is None else self._carrier.get_write_buffer_size()
        return self._transport.get_write_buffer_size() + carried

    def is_closing(self) -> bool:
        """Whether no more data will be sent."""
        return self.is_closed or self._transport.is_closing()

    def limit_unsent(self, num_bytes: int) -> None:
        """Pauses the connection's request while more than `num_bytes` are unsent."""
        if self._carrier is None:
            self._transport.set_write_buffer_limits(high=num_bytes)
            return
        self._transport.set_write_buffer_limits(high=num_bytes // 2)
        self._carrier.set_write_buffer_limits(high=num_bytes // 2)

    def abort(self) -> None:
        """Closes the connection immediately and drops unsent bytes."""
        self.is_closed = True
        self._transport.abort()

    def note_lost(self) -> None:
        """Called when the connection is lost. Stops lingering, and drops references to the connection."""
        self.is_closed = True
        self.close = lambda: None
        if self._lingering is not None:
            self._lingering.cancel()

    def finish(self, loop: asyncio.AbstractEventLoop, *, is_client_sending: bool, timeout_s: float) -> None:
        """Sends the unsent bytes, then closes. Takes at most `timeout_s`, even if the client does not read.

        Closing while the client still sends would reset the connection, and the response would be lost. So
        the transport lingers until the client stops sending, or with TLS until the client ends the TLS
        session. Input is read and dropped meanwhile.
        """
        self.is_closed = True
        if self._transport.is_closing():
            return
        if is_client_sending and self._transport.can_write_eof():
            self._transport.write_eof()
            self._transport.resume_reading()
        else:
            self._transport.close()
            if self._carrier is None and not self._transport.get_write_buffer_size():
                return
        end_s = loop.time() + timeout_s
        self._lingering = loop.call_later(min(_LINGER_S, timeout_s), self._end_lingering, loop, end_s)

    def _end_lingering(self, loop: asyncio.AbstractEventLoop, end_s: float) -> None:
        if self.num_unsent_bytes and loop.time() < end_s:
            self._lingering = loop.call_at(end_s, self._transport.abort)
        else:
            self._transport.abort()
