"""Access to the server: TLS and API keys, and their renewal while it runs."""

from typing import TYPE_CHECKING

from server.security.api_keys import ApiKeys
from server.security.file_watch import FileWatch
from server.security.tls import RenewableTls, tls_files
from server.server_config import ServerConfig

if TYPE_CHECKING:
    import ssl
    from collections.abc import Callable


class Access:
    """Holds the listening socket's TLS, and watches the TLS and key files for changes, on the event loop."""

    def __init__(self, config: ServerConfig, api_keys: ApiKeys) -> None:
        """Raises TlsError if the TLS files cannot be used."""
        self.tls_context: Callable[[], ssl.SSLContext] | None = None
        """Returns the context for a new handshake; None if the server uses plain HTTP."""
        self._watches: list[FileWatch] = []
        if config.network.api_key_file:
            self._watches.append(FileWatch([config.network.api_key_file], api_keys.reload))
        if config.tls.ssl_certfile is not None:
            tls = RenewableTls(config.tls)
            self.tls_context = lambda: tls.context
            if config.tls.enable_ssl_refresh:
                self._watches.append(FileWatch(tls_files(config.tls), tls.reload))

    def start(self) -> None:
        """Starts watching."""
        for watch in self._watches:
            watch.start()

    def close(self) -> None:
        """Stops watching."""
        for watch in self._watches:
            watch.close()
