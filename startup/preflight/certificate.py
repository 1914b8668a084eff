"""Checks the server's certificate with a TLS handshake in memory between server and client."""

import ssl
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any, Final

from server.security.tls import TlsError, create_tls_context
from server.server_config import TlsConfig
from startup.preflight.report import Finding, error, info, warning

_SOON_DAYS: Final = 7
_MAX_ROUNDS: Final = 8


def certificate_findings(config: TlsConfig) -> Iterator[Finding]:
    """Reports unusable files, and certificates that are expired, expire soon, or are not for servers."""
    try:
        server = create_tls_context(replace(config, ssl_cert_reqs=0))
    except TlsError as err:
        yield error("tls", str(err))
        return
    yield from _client_findings(config, server)


def _client_findings(config: TlsConfig, server: ssl.SSLContext) -> Iterator[Finding]:
    """The client trusts the certificate itself, so that only the certificate's own faults are found."""
    client = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    client.check_hostname = False
    client.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
    client.load_verify_locations(config.ssl_certfile)
    try:
        certificate = _handshake(server, client)
    except ssl.SSLCertVerificationError as err:
        yield warning("tls", f"clients will reject --ssl-certfile {config.ssl_certfile}: {err.verify_message}")
        return
    except ssl.SSLError as err:
        yield warning("tls", f"TLS handshakes fail with --ssl-certfile {config.ssl_certfile}: {err.reason}")
        return
    ends = datetime.fromtimestamp(ssl.cert_time_to_seconds(certificate["notAfter"]), UTC)
    days = (ends - datetime.now(UTC)).days
    if days < _SOON_DAYS and not config.enable_ssl_refresh:
        yield warning(
            "tls",
            f"--ssl-certfile {config.ssl_certfile} expires on {ends:%Y-%m-%d %H:%M} UTC: renew it, "
            "and start with --enable-ssl-refresh to load the new one without a restart",
        )
    else:
        yield info("tls", f"--ssl-certfile {config.ssl_certfile} is valid until {ends:%Y-%m-%d}")


def _handshake(server: ssl.SSLContext, client: ssl.SSLContext) -> dict[str, Any]:
    """Completes a handshake; returns the server's certificate as the client receives it."""
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    ends = (
        client.wrap_bio(to_client, to_server, server_hostname="localhost"),
        server.wrap_bio(to_server, to_client, server_side=True),
    )
    for end in ends * _MAX_ROUNDS:
        with suppress(ssl.SSLWantReadError):
            end.do_handshake()
    return dict(ends[0].getpeercert() or {})
