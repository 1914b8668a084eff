"""Holds the server's TLS and API keys, and renews them when their files change."""

import threading
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from base.machine.file_stamps import FileStamp, read_stamp
from base.security.api_keys import ApiKeys
from base.security.tls import RenewableTls, tls_files
from base.server_settings import NetworkConfig, TlsConfig

if TYPE_CHECKING:
    import ssl

_INTERVAL_S = 1.0
_END_S = 0.1
"""Seconds that `close` waits at most for a poll that is running."""


class Credentials:
    """Holds the API keys and the TLS of the listening socket, and watches their files for changes."""

    def __init__(self, network: NetworkConfig, tls: TlsConfig, api_keys: ApiKeys) -> None:
        """Raises TlsError if the TLS files cannot be used."""
        self.api_keys = api_keys
        self.tls_context: Callable[[], ssl.SSLContext] | None = None
        """Returns the context for a new handshake. None if the server uses plain HTTP."""
        self._watches: list[FileWatch] = []
        if network.api_key_file:
            self._watches.append(FileWatch([network.api_key_file], api_keys.reload))
        if tls.ssl_certfile is not None:
            renewable = RenewableTls(tls)
            self.tls_context = lambda: renewable.context
            if tls.enable_ssl_refresh:
                self._watches.append(FileWatch(tls_files(tls), renewable.reload))

    def start(self) -> None:
        for watch in self._watches:
            watch.start()

    def close(self) -> None:
        for watch in self._watches:
            watch.close()


class FileWatch:
    """Polls files once a second in a thread of its own, so that a hanging file system blocks nothing else.

    Reports a change when two polls in a row find the same new state, whether the file was changed in place,
    by a rename, or behind a symbolic link.
    """

    def __init__(
        self, paths: Iterable[str | Path], on_change: Callable[[], object], *, interval_s: float = _INTERVAL_S
    ) -> None:
        """The polling thread calls `on_change`."""
        self._interval_s = interval_s
        self._paths = [Path(path) for path in paths]
        self._on_change = on_change
        self._reported = self._polled = self._read_stamps()
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._poll, name="watch files", daemon=True)

    def start(self) -> None:
        """Starts polling. Changes since the creation of this object are also reported."""
        self._thread.start()

    def close(self) -> None:
        self._closed.set()
        if self._thread.is_alive():
            self._thread.join(_END_S)

    def _poll(self) -> None:
        while not self._closed.wait(self._interval_s):
            before, self._polled = self._polled, self._read_stamps()
            if self._polled == before and self._polled != self._reported:
                self._reported = self._polled
                self._on_change()

    def _read_stamps(self) -> list[FileStamp]:
        return [read_stamp(path) for path in self._paths]
