"""The credentials of the server: TLS and API keys, and their renewal when their files change."""

import asyncio
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


class Credentials:
    """Holds the listening socket's TLS, and watches the TLS and key files for changes, on the event loop."""

    def __init__(self, network: NetworkConfig, tls: TlsConfig, api_keys: ApiKeys) -> None:
        """Raises TlsError if the TLS files cannot be used."""
        self.tls_context: Callable[[], ssl.SSLContext] | None = None
        """Returns the context for a new handshake; None if the server uses plain HTTP."""
        self._watches: list[FileWatch] = []
        if network.api_key_file:
            self._watches.append(FileWatch([network.api_key_file], api_keys.reload))
        if tls.ssl_certfile is not None:
            renewable = RenewableTls(tls)
            self.tls_context = lambda: renewable.context
            if tls.enable_ssl_refresh:
                self._watches.append(FileWatch(tls_files(tls), renewable.reload))

    def start(self) -> None:
        """Starts watching."""
        for watch in self._watches:
            watch.start()

    def close(self) -> None:
        """Stops watching."""
        for watch in self._watches:
            watch.close()


class FileWatch:
    """Polls files once a second on the event loop; reports a change when two polls in a row agree.

    It detects files that are replaced in place, by a rename, or behind a symbolic link.
    """

    def __init__(
        self, paths: Iterable[str | Path], on_change: Callable[[], None], *, interval_s: float = _INTERVAL_S
    ) -> None:
        self._interval_s = interval_s
        self._paths = [Path(path) for path in paths]
        self._on_change = on_change
        self._reported = self._polled = self._read_stamps()
        self._timer: asyncio.TimerHandle | None = None

    def start(self) -> None:
        """Starts polling; changes since this object was created count."""
        self._timer = asyncio.get_running_loop().call_later(self._interval_s, self._compare)

    def close(self) -> None:
        """Stops polling."""
        if self._timer is not None:
            self._timer.cancel()

    def _compare(self) -> None:
        before, self._polled = self._polled, self._read_stamps()
        if self._polled == before and self._polled != self._reported:
            self._reported = self._polled
            self._on_change()
        self.start()

    def _read_stamps(self) -> list[FileStamp]:
        return [read_stamp(path) for path in self._paths]
