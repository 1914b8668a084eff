"""Creates the TLS context of the server's socket from the operator's files, and renews it when they change.

OpenSSL must never ask for a password on the terminal.
"""

import logging
import ssl
from pathlib import Path

from base.errors import ServerError
from base.server_settings import TlsConfig

logger = logging.getLogger(__name__)

_CERTIFICATE = b"-----BEGIN CERTIFICATE-----"
_KEY = b"PRIVATE KEY-----"
_ENCRYPTED = (b"BEGIN ENCRYPTED PRIVATE KEY", b"Proc-Type: 4,ENCRYPTED")


class TlsError(ServerError):
    """TLS files or settings cannot be used. The message names the option, the file and a remedy."""


def create_tls_context(config: TlsConfig) -> ssl.SSLContext:
    """Creates a server's context for TLS 1.2 and newer.

    Raises:
        TlsError: a file cannot be used, key and certificate do not belong together, or a cipher is unknown.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    _load_certificate(context, config)
    if config.ssl_ca_certs is not None:
        _check_pem("--ssl-ca-certs", config.ssl_ca_certs, _CERTIFICATE, "certificate")
        try:
            context.load_verify_locations(config.ssl_ca_certs)
        except ssl.SSLError as err:
            raise TlsError(f"--ssl-ca-certs {config.ssl_ca_certs} holds a broken certificate: {_reason(err)}") from err
    context.verify_mode = ssl.VerifyMode(config.ssl_cert_reqs)
    if config.ssl_cert_reqs:  # resumed sessions would skip the check of the client's certificate
        context.options |= ssl.OP_NO_TICKET
        context.num_tickets = 0
    if config.ssl_ciphers is not None:
        try:
            context.set_ciphers(config.ssl_ciphers)
        except ssl.SSLError as err:
            raise TlsError(f"--ssl-ciphers {config.ssl_ciphers!r} names no cipher that OpenSSL supports") from err
    return context


def tls_files(config: TlsConfig) -> list[str]:
    """The files from which the context is created."""
    return [name for name in (config.ssl_certfile, config.ssl_keyfile, config.ssl_ca_certs) if name is not None]


class RenewableTls:
    """Holds the context for new handshakes. Existing connections keep their context.

    A new context is complete before it is used, so a failed renewal changes nothing. The new context has no
    sessions of the previous context, so clients that reconnect after a renewal are verified again.
    """

    def __init__(self, config: TlsConfig) -> None:
        """Raises TlsError if a file or setting cannot be used."""
        self._config = config
        self.context = create_tls_context(config)

    def reload(self) -> None:
        """Reads the files again. If they cannot be used, the old context stays."""
        try:
            self.context = create_tls_context(self._config)
        except TlsError as err:
            logger.error("the TLS files have changed and cannot be used: %s. The previous files stay in use", err)
        else:
            logger.info("the TLS files have changed: new connections get the new certificate")


def _load_certificate(context: ssl.SSLContext, config: TlsConfig) -> None:
    certificate, key = config.ssl_certfile, config.ssl_keyfile
    if certificate is None:
        raise TlsError("TLS needs a certificate: give one with --ssl-certfile")
    _check_pem("--ssl-certfile", certificate, _CERTIFICATE, "certificate")
    option, key_file = ("--ssl-keyfile", key) if key is not None else ("--ssl-certfile", certificate)
    if any(mark in _check_pem(option, key_file, _KEY, "private key") for mark in _ENCRYPTED):
        raise _encrypted(option, key_file)

    def reject_password() -> str:
        raise _encrypted(option, key_file)

    try:
        context.load_cert_chain(certificate, key, password=reject_password)
    except ssl.SSLError as err:
        if err.reason == "KEY_VALUES_MISMATCH":
            message = (
                f"{option} {key_file} is not the key of --ssl-certfile {certificate}: give the two that belong together"
            )
        else:
            message = f"--ssl-certfile {certificate} and its key in {key_file} cannot be used: {_reason(err)}"
        raise TlsError(message) from err


def _check_pem(option: str, name: str, mark: bytes, what: str) -> bytes:
    try:
        content = Path(name).read_bytes()
    except OSError as err:
        raise TlsError(f"{option} {name} cannot be read: {err.strerror}") from err
    if mark not in content:
        raise TlsError(f"{option} {name} holds no {what} in PEM format (-----BEGIN ...)")
    return content


def _encrypted(option: str, name: str) -> TlsError:
    return TlsError(
        f"{option} {name} is encrypted, and the server cannot ask for a password: "
        "decrypt it with `openssl pkey -in FILE -out NEW` and keep it readable for the server's user alone"
    )


def _reason(err: ssl.SSLError) -> str:
    return (err.reason or str(err)).lower().replace("_", " ")
