"""The collector's address and the protocol of OTLP; standard library only."""

from typing import Final, Literal, NamedTuple
from urllib.parse import urlsplit

from server.errors import ConfigError

_HTTP: Final = "http/protobuf"
_GRPC: Final = "grpc"
_HTTP_PORT: Final = 4318
_HTTP_PATH: Final = "/v1/traces"


class TraceEndpoint(NamedTuple):
    """A collector's address."""

    protocol: Literal["grpc", "http/protobuf"]
    url: str
    is_secure: bool


def read_endpoint(address: str, protocol: str | None = None) -> TraceEndpoint:
    """Reads the value of `--otlp-traces-endpoint`.

    Args:
        address: `http://collector:4318/v1/traces`, `grpc://collector:4317`, `collector:4317`. A query, which
            may contain a key, is neither sent nor logged: keys belong in OTEL_EXPORTER_OTLP_HEADERS.
        protocol: `OTEL_EXPORTER_OTLP_TRACES_PROTOCOL`; without it, port 4318 and addresses with a path
            use HTTP, others gRPC, vLLM's default.

    Raises:
        ConfigError: the address is invalid, or the protocol is unknown.
    """
    split = urlsplit(address if "://" in address else f"{_GRPC}://{address}")
    if split.scheme not in ("http", "https", _GRPC) or not split.hostname or not _has_good_port(address):
        expected = "an address such as http://collector:4318/v1/traces or grpc://collector:4317"
        raise ConfigError("--otlp-traces-endpoint", address.partition("?")[0], expected)
    if protocol is None:
        is_http = split.scheme != _GRPC and (split.port == _HTTP_PORT or split.path.strip("/"))
        protocol = _HTTP if is_http else _GRPC
    is_secure = split.scheme == "https"
    if protocol == _GRPC:  # gRPC has no login in the address, and its log lines contain the target
        return TraceEndpoint(_GRPC, split.netloc.rpartition("@")[2], is_secure)
    if protocol == _HTTP:
        path = split.path if split.path.strip("/") else _HTTP_PATH
        return TraceEndpoint(_HTTP, f"{'https' if is_secure else 'http'}://{split.netloc}{path}", is_secure)
    raise ConfigError("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", protocol, f"{_GRPC} or {_HTTP}")


def _has_good_port(address: str) -> bool:
    try:
        return urlsplit(address if "://" in address else f"//{address}").port != 0
    except ValueError:
        return False
