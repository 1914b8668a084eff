"""The reports of the responder's process to the API process, and the connections that it passes on."""

import errno
import selectors
import socket
import struct
from collections import deque
from typing import Final

from startup.probes.serving_messages import Report

_SEND_BUFFER_BYTES: Final = 1 << 20
"""The kernel's limit is lower; half a kilobyte per connection that the API process has not received yet."""


class ReportQueue:
    """Sends at once what the kernel accepts, and the rest in the same order once it accepts more."""

    def __init__(self, api_process: socket.socket, selector: selectors.BaseSelector) -> None:
        """`api_process` is registered with the selector."""
        self.api_process = api_process
        self._selector = selector
        self._unsent: deque[tuple[Report, socket.socket | None]] = deque()
        self._waits_for_beat = False
        """Whether sending failed although the queue has room: it is tried again after the next heartbeat."""
        api_process.setblocking(False)
        api_process.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _SEND_BUFFER_BYTES)

    def __len__(self) -> int:
        """How many reports wait to be sent."""
        return len(self._unsent)

    def send(self, report: Report, connection: socket.socket | None = None) -> None:
        """Sends at once or, if the API process receives nothing, later; closes the connection then."""
        if self._unsent or not self.try_send(report, connection):
            self._unsent.append((report, connection))
            self._follow()
        elif connection is not None:
            connection.close()

    def try_send(self, report: Report, connection: socket.socket | None = None) -> bool:
        """Whether it could be sent now; the connection stays open."""
        rights = struct.pack("i", connection.fileno()) if connection is not None else b""
        ancillary = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, rights)] if rights else []
        try:
            self.api_process.sendmsg([report.encode()], ancillary)
        except (BlockingIOError, InterruptedError):
            return False
        except OSError as err:
            if err.errno == errno.ETOOMANYREFS:  # more descriptors are on their way than the limit allows
                self._waits_for_beat = True
                return False
            raise
        return True

    def send_unsent(self) -> None:
        """Sends what has waited, as far as possible."""
        while self._unsent and self.try_send(*self._unsent[0]):
            _, connection = self._unsent.popleft()
            if connection is not None:
                connection.close()
        self._follow()

    def note_beat(self) -> None:
        """The API process has sent a heartbeat, so that it receives, too."""
        self._waits_for_beat = False
        if self._unsent:
            self.send_unsent()

    def send_all(self) -> None:
        """Sends what has waited, however long it takes; raises OSError if the API process has exited."""
        self.api_process.setblocking(True)
        while self._unsent:
            self.try_send(*self._unsent.popleft())

    def _follow(self) -> None:
        wants_write = selectors.EVENT_WRITE if self._unsent and not self._waits_for_beat else 0
        self._selector.modify(self.api_process, selectors.EVENT_READ | wants_write)
