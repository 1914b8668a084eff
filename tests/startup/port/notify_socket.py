"""The service manager's end of NOTIFY_SOCKET, which is a real datagram socket."""

import socket
import struct
import threading
from pathlib import Path
from typing import Self
from uuid import uuid4


class NotifySocket:
    """Records each message that it receives. The address is a path, or a new abstract one."""

    def __init__(self, address: str = "") -> None:
        self.address = address = address or f"@vllm-cli-test-{uuid4()}"
        self.messages: list[str] = []
        self.senders: set[int] = set()
        """The processes that have sent messages. A manager accepts only messages of the main process."""
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
        self._socket.bind(f"\0{address[1:]}" if address.startswith("@") else address)
        self._thread = threading.Thread(target=self._listen, name="notify-socket")

    @property
    def lines(self) -> list[str]:
        return [line for message in list(self.messages) for line in message.splitlines()]

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as ours:
            ours.sendto(b"", self._socket.getsockname())
        self._thread.join()
        self._socket.close()
        if not self.address.startswith("@"):
            Path(self.address).unlink()

    def _listen(self) -> None:
        while True:
            message, [(_, _, credentials)], *_ = self._socket.recvmsg(1 << 16, socket.CMSG_SPACE(12))
            if not message:
                break
            self.senders.add(struct.unpack("3i", credentials)[0])
            self.messages.append(message.decode())
