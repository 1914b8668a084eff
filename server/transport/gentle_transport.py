"""Closing a connection in such a way that the client gets to read why, and that none hangs for ever."""

import asyncio
from collections.abc import Callable

_LINGER_S = 5.0
"""How long a refused client may go on sending: what it sends is dropped, and it has time to read the answer."""


class GentleTransport:
    """A transport for uvicorn whose `close` is the connection's to do; all else is the real one's own."""

    def __init__(self, transport: asyncio.Transport, on_close: Callable[[], None]) -> None:
        self._transport = transport
        self.write = transport.write
        self.get_extra_info = transport.get_extra_info
        self.pause_reading = transport.pause_reading
        self.resume_reading = transport.resume_reading
        self.close = on_close
        self.is_closed = False

    def is_closing(self) -> bool:
        """Whether nothing more will be sent."""
        return self.is_closed or self._transport.is_closing()

    def abort(self) -> None:
        """Closes at once, whatever has not been sent."""
        self._transport.abort()

    def finish(self, loop: asyncio.AbstractEventLoop, *, is_client_sending: bool, timeout_s: float) -> None:
        """Sends what is left, then closes; within the timeout, whether the client reads or not.

        Closing while the client still sends would reset the connection, and the answer be lost: its end is awaited.
        """
        self.is_closed = True
        if self._transport.is_closing():
            return
        if is_client_sending and self._transport.can_write_eof():
            self._transport.write_eof()
            self._transport.resume_reading()
            loop.call_later(min(_LINGER_S, timeout_s), self._transport.abort)
            return
        self._transport.close()
        if self._transport.get_write_buffer_size():
            loop.call_later(timeout_s, self._transport.abort)
