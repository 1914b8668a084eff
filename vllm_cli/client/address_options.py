"""The options with which a command finds a server: the address flags of `serve`, or a URL."""

import ssl
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final, TypeVar

import click

from vllm_cli.client.server_address import ServerAddress, parse_url, reachable_host
from vllm_cli.errors import InputError

F = TypeVar("F", bound=Callable[..., Any])

_CERTIFICATE: Final = click.Path(exists=True, dir_okay=False, path_type=Path)

ADDRESS_NAMES: Final = ("url", "host", "port", "uds", "is_tls", "ssl_certfile", "insecure")
"""The parameters that `build_address` reads."""


def address_options(command: F) -> F:
    """Adds the address flags; the command itself declares `url`, as an argument or an option."""
    for option in (
        click.option("--insecure", is_flag=True, help="Use HTTPS and accept any certificate."),
        click.option(
            "--ssl-certfile", type=_CERTIFICATE, help="Use HTTPS and trust this certificate, as given to `serve`."
        ),
        click.option("--ssl", "is_tls", is_flag=True, help="The server speaks HTTPS."),
        click.option("--uds", metavar="PATH", help="UNIX domain socket of the server."),
        click.option("--port", type=click.IntRange(1, 65535), show_default="8000", help="Port of the server."),
        click.option("--host", show_default="localhost", help="Host of the server, as given to `serve`."),
    ):
        command = option(command)
    return command


def build_address(options: dict[str, Any]) -> ServerAddress:
    """The address that these parameters name.

    Raises:
        InputError: two of them exclude each other, or one is not valid.
    """
    url, uds = options["url"], options["uds"]
    given = [f"--{name}" for name in ("host", "port", "uds") if options[name] is not None]
    if url is not None and given:
        raise InputError(f"Give URL or {', '.join(given)}, not both.")
    if uds is not None and len(given) > 1:
        raise InputError("Give --uds or --host and --port, not both.")
    is_tls = options["is_tls"] or options["insecure"] or options["ssl_certfile"] is not None
    if url is not None:
        url = f"https://{url}" if is_tls and ":/" not in url else url
        return parse_url(url, _build_tls(options) if url.startswith("https:") else None)
    return ServerAddress(
        host=reachable_host(options["host"] or "localhost"),
        port=options["port"] or 8000,
        uds=uds,
        tls=_build_tls(options) if is_tls else None,
    )


def _build_tls(options: dict[str, Any]) -> ssl.SSLContext:
    """A certificate named by the caller is the server's own, so its host name need not match."""
    certificate = options["ssl_certfile"]
    context = ssl.create_default_context()
    if options["insecure"] or certificate is not None:
        context.check_hostname = False
    if options["insecure"]:
        context.verify_mode = ssl.CERT_NONE
    elif certificate is not None:
        try:
            context.load_verify_locations(certificate)
        except ssl.SSLError as err:
            raise InputError(f"--ssl-certfile: {certificate} is not a certificate ({err.reason}).") from err
    return context
