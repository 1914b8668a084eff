"""Checks API keys and TLS files in the way in which the server will use them."""

import stat
from collections.abc import Iterator
from pathlib import Path

from base.security.api_keys import KeyFileError, read_key_file
from base.server_settings import NetworkConfig, TlsConfig
from startup.preflight.report import Finding, error, warning


def check_api_keys(config: NetworkConfig) -> Iterator[Finding]:
    """Checks that the key file can be read, contains a key and is private, and that required keys exist.

    `--api-key-everywhere` without a key is an error: the server would accept every request without a key.
    """
    if not config.api_key_file:
        if config.api_key_everywhere and not config.api_keys:
            yield error("api_keys", "--api-key-everywhere needs a key: give one with --api-key-file or VLLM_API_KEY")
        return
    path = Path(config.api_key_file)
    try:
        read_key_file(path)
    except KeyFileError as err:
        yield error("api_keys", str(err))
    else:
        yield from _readable_by_all("api_keys", "--api-key-file", path)


def check_tls(config: TlsConfig) -> Iterator[Finding]:
    """Checks that the server can use the files."""
    if unreadable := list(_unreadable(config)):
        yield from unreadable
        return
    if config.ssl_certfile is None:
        yield from _check_settings_without_certificate(config)
        return
    from base.security.tls import TlsError, create_tls_context  # noqa: PLC0415 - only with a certificate

    try:
        create_tls_context(config)
    except TlsError as err:
        yield error("tls", str(err))
        return
    if config.ssl_ca_certs is not None and not config.ssl_cert_reqs:
        yield warning("tls", "--ssl-ca-certs has no effect as long as --ssl-cert-reqs is 0: set it to 2 (required)")
    yield from _readable_by_all("tls", "--ssl-keyfile", Path(config.ssl_keyfile or config.ssl_certfile))


def _unreadable(config: TlsConfig) -> Iterator[Finding]:
    for option, name in _given_files(config).items():
        try:
            Path(name).open("rb").close()
        except OSError as err:
            yield error("tls", f"{option} {name} cannot be read: {err.strerror}")


def _given_files(config: TlsConfig) -> dict[str, str]:
    files = {
        "--ssl-keyfile": config.ssl_keyfile,
        "--ssl-certfile": config.ssl_certfile,
        "--ssl-ca-certs": config.ssl_ca_certs,
    }
    return {option: name for option, name in files.items() if name is not None}


def _check_settings_without_certificate(config: TlsConfig) -> Iterator[Finding]:
    """TLS settings without a certificate are an error: the server would use plain HTTP."""
    given = _given_files(config)
    given |= {"--ssl-ciphers": config.ssl_ciphers} if config.ssl_ciphers is not None else {}
    if config.enable_ssl_refresh:
        given["--enable-ssl-refresh"] = ""
    for option, value in given.items():
        yield error("tls", f"{option} {value}".strip() + " needs a certificate: give one with --ssl-certfile")


def _readable_by_all(check: str, option: str, path: Path) -> Iterator[Finding]:
    if path.stat().st_mode & stat.S_IROTH:
        yield warning(check, f"{option} {path} can be read by every user of this machine: run `chmod o= {path}`")
