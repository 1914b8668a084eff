"""A stand-in for the Hugging Face hub: real repositories over HTTP for the real hub's client.

Two addresses, as at the real hub: one for the API and small files, one that holds what is in LFS. A third
one accepts connections for Xet and never answers.
"""

import socket
import threading
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any, Final, Literal

from tests.hub.faults import Faults
from tests.hub.handler import HubHandler, SeenRequest
from tests.hub.repository import HubCommit, HubFile
from tests.support.http_server import LocalServer, serving

CDN_HOST: Final = "127.0.0.2"
"""Another host than the hub's 127.0.0.1, so that clients must not send their token there."""
_PIECE_S: Final = 0.01
"""A piece takes this long at the link's rate, so that connections alternate a hundred times a second."""
_MAX_PIECE: Final = 1 << 20
_MIN_PIECE: Final = 1 << 10
_LATENESS_S: Final = 0.05
"""A sender that wakes up late by up to this time sends faster afterwards; no other burst is possible."""


class Link:
    """Delays senders so that together they keep to the rate, however many connections there are.

    Each `take` reserves the next part of the link's time, so that senders are served in order. Only bodies
    of files count, not headers.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._free_from_s = 0.0
        self.bytes_per_s: float | None = None
        """None: unlimited. May be changed at any time."""

    @property
    def piece_bytes(self) -> int:
        """How many bytes to send after one `take`."""
        if self.bytes_per_s is None:
            return _MAX_PIECE
        return min(max(int(self.bytes_per_s * _PIECE_S), _MIN_PIECE), _MAX_PIECE)

    def take(self, num_bytes: int) -> None:
        """Waits until so many bytes fit through the link."""
        rate = self.bytes_per_s
        if rate is None:
            return
        with self._lock:
            now = time.monotonic()
            self._free_from_s = max(self._free_from_s, now - _LATENESS_S) + num_bytes / rate
            wait_s = self._free_from_s - now
        if wait_s > 0:
            time.sleep(wait_s)


class HubServer:
    """Repositories, faults and counters; the fields may be changed while it serves."""

    def __init__(self) -> None:
        self.revisions: dict[str, dict[str, HubCommit]] = {}
        """Commits by repository and branch; each is found by its hash, too."""
        self.gated: set[str] = set()
        """Repositories whose files are only for `token`; everybody sees their listing."""
        self.private: set[str] = set()
        """Repositories that exist only for `token`."""
        self.token: str | None = None
        """If given, any other token is refused."""
        self.renamed: dict[str, str] = {}
        self.lists_contents = True
        """Whether listings have sizes and hashes; some mirrors leave them out."""
        self.is_xet = False
        """Whether files in LFS are announced for Xet, whose server accepts connections and never answers."""
        self.may_answer = threading.Event()
        """While it is cleared, no request is answered."""
        self.may_answer.set()
        self.link = Link()
        self.faults = Faults()
        self.requests: list[SeenRequest] = []
        self.sent: Counter[str] = Counter()
        """Bytes of files by `repository/file`."""
        self.closing = threading.Event()
        self._servers = [HubListener(self, "hub", "127.0.0.1"), HubListener(self, "cdn", CDN_HOST)]
        self.xet = socket.create_server(("127.0.0.1", 0), backlog=256)
        """Xet's server: the kernel takes connections to it, and nobody answers them."""
        self.xet.setblocking(False)

    @property
    def url(self) -> str:
        """The value for `HF_ENDPOINT`."""
        return self._servers[0].url

    @property
    def cdn_url(self) -> str:
        return self._servers[1].url

    @property
    def xet_url(self) -> str:
        return "http://{}:{}".format(*self.xet.getsockname())

    def add(
        self,
        model_id: str,
        files: Mapping[str, bytes] | Path,
        *,
        revision: str = "main",
        commit: str | None = None,
    ) -> HubCommit:
        """Adds a repository, or a branch of one; replaces what is there."""
        added = HubCommit.of_folder(files) if isinstance(files, Path) else HubCommit(files, commit)
        self.revisions.setdefault(model_id, {})[revision] = added
        return added

    def find(self, model_id: str, revision: str) -> HubCommit | None:
        """The commit of a branch or hash."""
        branches = self.revisions.get(model_id, {})
        return branches.get(revision) or next((one for one in branches.values() if one.id == revision), None)

    def find_content(self, sha256: str) -> HubFile | None:
        """A file in LFS with this content."""
        return next(
            (
                file
                for branches in self.revisions.values()
                for commit in branches.values()
                for file in commit.files.values()
                if file.is_lfs and file.sha256 == sha256
            ),
            None,
        )

    @property
    def downloads(self) -> list[str]:
        """`repository/file` of each GET that was answered with content, in order."""
        sent = [seen for seen in self.requests if seen.method == "GET" and seen.status in (200, 206)]
        return [name for seen in sent if (name := seen.downloaded)]

    @property
    def ranges(self) -> list[int]:
        """The first bytes of the parts of files that were sent, without whole files."""
        parts = [seen.range for seen in self.requests if seen.method == "GET" and seen.status == 206]
        return [int(text.removeprefix("bytes=").partition("-")[0] or 0) for text in parts if text]

    @property
    def tokens(self) -> dict[str, set[str | None]]:
        """The tokens that each host received; None of a request without one."""
        return {host: {seen.token for seen in self.requests if seen.host == host} for host in ("hub", "cdn")}

    def reset(self) -> None:
        """Forgets what was requested and sent."""
        self.requests.clear()
        self.sent.clear()

    @contextmanager
    def serving(self) -> Iterator["HubServer"]:
        """Serves in threads until the block ends; open connections are closed then."""
        with ExitStack() as stack:
            for server in self._servers:
                stack.enter_context(serving(server))
            stack.enter_context(self.xet)
            try:
                yield self
            finally:
                self.closing.set()
                self.may_answer.set()


class HubListener(LocalServer):
    """One of the two addresses; a thread for each connection."""

    daemon_threads = False
    request_queue_size = 256

    def __init__(self, hub: HubServer, role: Literal["hub", "cdn"], host: str) -> None:
        self.hub = hub
        self.role = role
        self._connections: set[socket.socket] = set()
        super().__init__(HubHandler, 0, host=host)

    def process_request(self, request: Any, client_address: Any) -> None:
        self._connections.add(request)
        super().process_request(request, client_address)

    def shutdown_request(self, request: Any) -> None:
        self._connections.discard(request)
        super().shutdown_request(request)

    def server_close(self) -> None:
        """Ends the threads that wait for another request or for a client that does not read."""
        for connection in list(self._connections):
            with suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
        super().server_close()
