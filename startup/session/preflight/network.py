"""Checks the listening address, API keys and TLS files, in the same way as the server will use them."""

import os
import stat
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

from base.security.api_keys import KeyFileError, read_key_file
from base.server_settings import NetworkConfig, TlsConfig
from envs.redaction import hide_in_arguments
from startup.errors import PortInUseError, StartupError
from startup.logs.formatters import escape_controls
from startup.port.listener import is_listened_on, listen
from startup.session.preflight.report import Finding, error, info, warning

_MAX_PATH_BYTES: Final = 107
"""Maximum length of a UNIX socket's path, in bytes (unix(7))."""
_MAX_CHARACTERS: Final = 120
"""Maximum number of characters of a command line in a message."""
_HOLDING: Final = ("LISTEN", "NONE")
"""psutil's states of listening sockets: `LISTEN` for TCP, `NONE` (unknown) for UNIX sockets."""


def check_address(config: NetworkConfig) -> Iterator[Finding]:
    """Checks that a server can listen on the configured address. Leaves no socket open."""
    if config.uds is not None:
        yield from _check_uds(Path(config.uds))
    elif config.port != 0:
        yield from _check_port(config)


def _check_port(config: NetworkConfig) -> Iterator[Finding]:
    try:
        listen(host=config.host, port=config.port, uds=None).close()
    except PortInUseError:
        who = _holders("tcp", lambda address: address and address.port == config.port)
        message = f"{config.host or '0.0.0.0'}:{config.port} is in use by {who}: stop it or choose another --port"
        yield error("port", message, PortInUseError.cause)
    except StartupError as err:
        is_low = err.cause == "port-not-permitted" and config.port < 1024
        advice = "choose a --port from 1024 up, lower ones need root" if is_low else "choose another --host"
        yield error("port", f"{err}: {advice}", err.cause)


def _check_uds(path: Path) -> Iterator[Finding]:
    if len(bytes(path)) > _MAX_PATH_BYTES:
        yield error("uds", f"--uds {path} has {len(bytes(path))} bytes, at most {_MAX_PATH_BYTES} are possible")
    elif not path.parent.is_dir():
        yield error("uds", f"--uds {path}: there is no folder {path.parent}")
    elif not os.access(path.parent, os.W_OK | os.X_OK):
        yield error("uds", f"--uds {path}: the folder {path.parent} cannot be written to")
    elif not path.exists():
        return
    elif not path.is_socket():
        yield error("uds", f"--uds {path} exists and is not a socket: remove it or choose another path")
    elif is_listened_on(path):
        who = _holders("unix", lambda address: address in (str(path), str(path.absolute())))
        yield error("uds", f"{path} is in use by {who}: stop it or choose another --uds", PortInUseError.cause)
    else:
        yield info("uds", f"{path} was left behind by a server that has ended: it is replaced")


def _holders(kind: str, is_wanted: Callable[[Any], bool]) -> str:
    """The processes that listen on an address that `is_wanted` accepts, as text for a message."""
    import psutil

    found = []
    for process in psutil.process_iter():
        with suppress(psutil.Error, OSError):  # it has ended, or belongs to another user
            if any(c.status in _HOLDING and is_wanted(c.laddr) for c in process.net_connections(kind)):
                found.append(describe_process(process.pid))
    return ", ".join(found) or "a process that is not visible from here, or does not listen yet"


def describe_process(pid: int) -> str:
    """Names a process by its pid and, if it is visible from here, by its command line without secrets.

    A process may have written any bytes over its command line. `setproctitle` leaves blanks behind a title.
    """
    import psutil

    try:
        process = psutil.Process(pid)
        words = process.cmdline() or [process.name()]
    except (psutil.Error, OSError):
        return f"pid {pid}"
    text = " ".join(" ".join(hide_in_arguments(words)).replace("\0", " ").split())
    text = escape_controls(text.encode(errors="backslashreplace").decode())
    shown = text if len(text) <= _MAX_CHARACTERS else f"{text[: _MAX_CHARACTERS - 1]}…"
    return f"pid {pid} ({shown})"


def check_api_keys(config: NetworkConfig) -> Iterator[Finding]:
    """Checks that the key file can be read, contains a key and is private, and that required keys exist.

    `--api-key-everywhere` without any key is an error, because the server would accept every request.
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
    """Checks that the server can use the TLS files."""
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
    """Reports TLS settings without a certificate as an error, because the server would use plain HTTP."""
    given = _given_files(config)
    given |= {"--ssl-ciphers": config.ssl_ciphers} if config.ssl_ciphers is not None else {}
    if config.enable_ssl_refresh:
        given["--enable-ssl-refresh"] = ""
    for option, value in given.items():
        yield error("tls", f"{option} {value}".strip() + " needs a certificate: give one with --ssl-certfile")


def _readable_by_all(check: str, option: str, path: Path) -> Iterator[Finding]:
    if path.stat().st_mode & stat.S_IROTH:
        yield warning(check, f"{option} {path} can be read by every user of this machine: run `chmod o= {path}`")
