"""Reads the address of a server from a URL or from the address flags of `serve`."""

import os
import re
import socket
import ssl
from dataclasses import dataclass
from http.client import HTTPConnection, HTTPSConnection
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit

import click

from startup.arguments.errors import InputError
from vllm_cli.terminal import options

_CERTIFICATE: Final = click.Path(exists=True, dir_okay=False, path_type=Path)
_WILDCARDS: Final = {"0.0.0.0": "127.0.0.1", "::": "::1", "": "localhost"}
"""An address that stands for all addresses of a host -> an address to which clients can connect."""
_ENDPOINT: Final = re.compile("((/v1)?/(chat/completions|completions|responses|messages|embeddings|models)|/v1)$")
"""The end of an address that was copied from a request."""


@dataclass(frozen=True, kw_only=True)
class ServerAddress:
    """A server's address."""

    host: str = "localhost"
    port: int = 8000
    uds: str | None = None
    """The path of a UNIX socket, which replaces host and port."""
    path: str = ""
    """A prefix of all paths of the API."""
    tls: ssl.SSLContext | None = None

    def __str__(self) -> str:
        if self.uds is not None:
            return f"unix:{self.uds}"
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{'https' if self.tls else 'http'}://{host}:{self.port}{self.path}"

    def connect(self, timeout_s: float) -> HTTPConnection:
        """Returns a connection that opens at its first request. The timeout applies to each operation."""
        if self.uds is not None:
            return _UnixConnection(self.uds, timeout_s)
        if self.tls is not None:
            return HTTPSConnection(self.host, self.port, timeout=timeout_s, context=self.tls)
        return HTTPConnection(self.host, self.port, timeout=timeout_s)


def parse_url(url: str, tls: ssl.SSLContext | None = None) -> ServerAddress:
    """The address in `http://host:port`, `https://…`, `unix:/path` or `host:port`, without the API's path.

    Raises:
        InputError: the URL has none of these forms.
    """
    if url.startswith("unix:"):
        path = url.removeprefix("unix:").removeprefix("//")
        if not path:
            raise InputError(f"{url!r} names no socket. Write unix:/run/vllm.sock.")
        return ServerAddress(uds=path)
    parts = urlsplit(url if "://" in url else f"http://{url}")
    try:
        port = parts.port
    except ValueError as err:
        raise InputError(f"{url!r} has no port between 0 and 65535.") from err
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise InputError(f"{url!r} is not an address such as http://localhost:8000 or unix:/run/vllm.sock.")
    is_tls = parts.scheme == "https"
    return ServerAddress(
        host=reachable_host(parts.hostname),
        port=port or (443 if is_tls else 80),
        path=_ENDPOINT.sub("", parts.path.rstrip("/")),
        tls=(tls or ssl.create_default_context()) if is_tls else None,
    )


def reachable_host(host: str | None) -> str:
    """The host to connect to. For a server that listens on every address, it is the loopback address."""
    return _WILDCARDS.get(host or "", host or "")


class _UnixConnection(HTTPConnection):
    """Connects through /proc/self/fd, so that the socket's path may be longer than 107 bytes (unix(7))."""

    def __init__(self, path: str, timeout_s: float) -> None:
        super().__init__("localhost", timeout=timeout_s)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        file = os.open(self._path, os.O_PATH)
        try:
            self.sock.connect(f"/proc/self/fd/{file}")
        finally:
            os.close(file)


address_options: Final = options(
    click.option("--host", show_default="localhost", help="Host, as given to `serve`."),
    click.option("--port", type=click.IntRange(1, 65535), show_default="8000", help="Port of the server."),
    click.option("--uds", metavar="PATH", help="The server's UNIX socket."),
    click.option("--ssl", "is_tls", is_flag=True, help="The server speaks HTTPS."),
    click.option(
        "--ssl-certfile", type=_CERTIFICATE, help="Use HTTPS and trust this certificate, as given to `serve`."
    ),
    click.option("--insecure", is_flag=True, help="Use HTTPS and accept any certificate."),
)
"""The address flags of `serve`. The command itself declares `url`, as an argument or an option."""


def take_address(options: dict[str, Any]) -> ServerAddress:
    """Removes `url` and the address flags from a command's parameters. Returns the address that they give.

    Raises:
        InputError: two of these parameters exclude each other, or one is not valid.
    """
    url, host, port, uds = (options.pop(name) for name in ("url", "host", "port", "uds"))
    certificate, is_insecure = options.pop("ssl_certfile"), options.pop("insecure")
    is_tls = options.pop("is_tls") or is_insecure or certificate is not None
    address = {"host": host, "port": port, "uds": uds}
    given = [f"--{name}" for name, value in address.items() if value is not None]
    if url is not None and given:
        raise InputError(f"Give URL or {', '.join(given)}, not both.")
    if uds is not None and len(given) > 1:
        raise InputError("Give --uds or --host and --port, not both.")
    if url is not None:
        url = f"https://{url}" if is_tls and ":/" not in url else url
        return parse_url(url, _build_tls(certificate, is_insecure) if url.startswith("https:") else None)
    return ServerAddress(
        host=reachable_host(host or "localhost"),
        port=port or 8000,
        uds=uds,
        tls=_build_tls(certificate, is_insecure) if is_tls else None,
    )


def _build_tls(certificate: Path | None, is_insecure: bool) -> ssl.SSLContext:
    """A context that trusts this certificate, either the server's own or its authority's, for every host.

    Since Python 3.13, default contexts trust a server's own certificate without its authority, and reject
    authorities that break RFC 5280. This context trusts both with every Python.
    """
    context = ssl.create_default_context()
    if is_insecure or certificate is not None:
        context.check_hostname = False
    if is_insecure:
        context.verify_mode = ssl.CERT_NONE
    elif certificate is not None:
        try:
            context.load_verify_locations(certificate)
            context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
            context.verify_flags &= ~ssl.VERIFY_X509_STRICT
        except ssl.SSLError as err:
            raise InputError(f"--ssl-certfile: {certificate} is not a certificate ({err.reason}).") from err
    return context
