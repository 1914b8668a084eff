"""Settings that all HTTP servers of this program share, in one class per subject. Standard library only."""

import re
from dataclasses import dataclass
from math import inf
from pathlib import Path
from typing import ClassVar, Final

from base.errors import ConfigError
from base.setting import Group, Role, check_ranges, from_variable, setting
from envs.registry import env

SHUTDOWN_TIMEOUT_S: Final = 25.0
"""The default time to drain. Kubernetes kills a pod 30 s after SIGTERM by default."""
SWITCH_INTERVAL_S: Final = 0.0005
"""How many seconds a thread may hold the interpreter. Python's default, 5 ms, would delay probes."""
SAME_SIGNAL_S: Final = 0.5
"""A second stop signal within this time is ignored. A server may get one stop signal twice: from the service
manager, and from the front process or the router."""
GIVES_WAY_S: Final = 45.0
"""Seconds without an answer after which a router stops a model that others wait for.

After this time, a server also ends an engine that is silent and computes nothing. Earlier, the router
disconnects clients that do not read, and silent WebSockets.
"""
_ROOT_PATH = re.compile(r"/[!-~]*")


def waiting_mark(socket_path: str) -> Path:
    """A file beside the socket of a model's server. It exists while other models wait for its memory."""
    return Path(f"{socket_path}.waiting")


def control_socket(socket_path: str) -> Path:
    """The socket on which a model's server gets the router's commands to sleep and to wake."""
    return Path(f"{socket_path}.control")


@dataclass(frozen=True, kw_only=True)
class NetworkConfig:
    """Where the server listens, and which requests it accepts."""

    help_group: ClassVar[Group] = "HTTP server"
    role: ClassVar[Role] = "port"

    host: str | None = setting(None, "--host", "Address to listen on, by default all addresses.", role="address")
    port: int = setting(8000, "--port", "Port to listen on.", role="address", minimum=0, maximum=65535)
    uds: str | None = setting(
        None, "--uds", "Unix socket to listen on, instead of host and port.", role="address", metavar="PATH"
    )
    api_keys: tuple[str, ...] = setting(
        (),
        "--api-key",
        "A request must contain one of these keys. To hide keys from other users, use the variable or --api-key-file.",
        role="keys",
        variable=env.VLLM_API_KEY,
        metavar="KEY...",
    )
    api_key_file: str | None = setting(
        None,
        "--api-key-file",
        "Further keys, one per line. Changes take effect within two seconds.",
        role="keys",
        metavar="FILE",
    )
    api_key_everywhere: bool = setting(
        False,
        "--api-key-everywhere",
        "Require a key for all routes (even /metrics and /status.json) except probes.",
        role="keys",
    )
    web_page: bool = setting(True, "--web-page", "Serve a page at / with a chat and the model's state.")
    root_path: str = setting("", "--root-path", "Path under which a proxy exposes the server.")
    allowed_origins: tuple[str, ...] = setting((), "--allowed-origins", "Origins allowed by CORS.", syntax="JSON list")
    allowed_methods: tuple[str, ...] = setting(
        ("*",), "--allowed-methods", "Methods allowed by CORS.", syntax="JSON list"
    )
    allowed_headers: tuple[str, ...] = setting(
        ("*",), "--allowed-headers", "Headers allowed by CORS.", syntax="JSON list"
    )
    allow_credentials: bool = setting(False, "--allow-credentials", "Allow credentials by CORS.")

    def __post_init__(self) -> None:
        check_ranges(self)
        if self.root_path and not _ROOT_PATH.fullmatch(self.root_path):
            raise ConfigError("--root-path", self.root_path, "a path that begins with /, such as /api")


@dataclass(frozen=True, kw_only=True)
class TlsConfig:
    """The settings of HTTPS, which needs a certificate."""

    help_group: ClassVar[Group] = "HTTP server"
    role: ClassVar[Role] = "tls"

    ssl_keyfile: str | None = setting(None, "--ssl-keyfile", "Private key for HTTPS.", metavar="FILE")
    ssl_certfile: str | None = setting(None, "--ssl-certfile", "Certificate for HTTPS.", metavar="FILE")
    ssl_ca_certs: str | None = setting(
        None, "--ssl-ca-certs", "Certificates of the CAs that sign client certificates.", metavar="FILE"
    )
    ssl_cert_reqs: int = setting(
        0,
        "--ssl-cert-reqs",
        "Whether clients need a certificate: 0 no, 1 optional, 2 required.",
        metavar="0|1|2",
        minimum=0,
        maximum=2,
        expected="0 (none), 1 (optional) or 2 (required)",
    )
    """One of the numbers `ssl.CERT_*`."""
    ssl_ciphers: str | None = setting(
        None, "--ssl-ciphers", "Ciphers of TLS 1.2 in OpenSSL's syntax, by default Python's."
    )
    enable_ssl_refresh: bool = setting(
        False, "--enable-ssl-refresh", "Reload changed certificate files within two seconds, without a restart."
    )

    def __post_init__(self) -> None:
        check_ranges(self)
        if self.ssl_cert_reqs and self.ssl_ca_certs is None:
            expected = "0 without --ssl-ca-certs, which names the trusted CAs"
            raise ConfigError("--ssl-cert-reqs", self.ssl_cert_reqs, expected)


@dataclass(frozen=True, kw_only=True)
class LifecycleConfig:
    """How the server and its engine shut down."""

    help_group: ClassVar[Group] = "HTTP server"

    shutdown_timeout_s: float = setting(
        SHUTDOWN_TIMEOUT_S,
        "--shutdown-timeout",
        "How long running requests may take to finish after SIGTERM.",
        minimum=0,
    )
    drain_grace_s: float = setting(
        0.0,
        "--drain-grace",
        "After SIGTERM, keep the port open at least this long, for load balancers. New requests get 503.",
        role="port",
        minimum=0,
        below=inf,
    )

    def __post_init__(self) -> None:
        check_ranges(self)


@dataclass(frozen=True, kw_only=True)
class LoggingConfig:
    """What the server logs."""

    help_group: ClassVar[Group] = "Logging"

    uvicorn_log_level: str = setting(
        "info",
        "--uvicorn-log-level",
        "Least severe level that the HTTP server logs.",
        role="program",
        choices=("critical", "error", "warning", "info", "debug", "trace"),
    )
    enable_log_requests: bool = setting(False, "--enable-log-requests", "Log every request.")
    disable_access_log: bool = setting(
        False, "--disable-uvicorn-access-log", "Do not log a line per request.", role="program"
    )
    disable_access_log_for_endpoints: tuple[str, ...] = setting(
        (),
        "--disable-access-log-for-endpoints",
        "Paths whose requests are not logged, such as /health,/metrics.",
        role="port",
        syntax="comma list",
        metavar="PATH,...",
    )
    disable_log_stats: bool = setting(
        False,
        "--disable-log-stats",
        "Do not log throughput, requests and cache use every ten seconds (VLLM_LOG_STATS_INTERVAL).",
    )
    log_stats_interval_s: float = from_variable(env.VLLM_LOG_STATS_INTERVAL)

    def __post_init__(self) -> None:
        check_ranges(self)
