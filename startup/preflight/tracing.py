"""Checks that traces can be sent: the address is valid, and OpenTelemetry is installed."""

from collections.abc import Iterator
from importlib.util import find_spec
from typing import Final

from server.errors import ConfigError
from server.server_config import LoggingConfig
from startup.preflight.report import Finding, error

_CHECK: Final = "tracing"
_MODULES: Final = {
    "grpc": "opentelemetry.exporter.otlp.proto.grpc",
    "http/protobuf": "opentelemetry.exporter.otlp.proto.http",
}


def check_tracing(server: LoggingConfig) -> Iterator[Finding]:
    """Checks and imports nothing without `--otlp-traces-endpoint`."""
    if server.otlp_traces_endpoint is None:
        return
    from server.tracing.tracer import read_endpoint

    try:
        endpoint = read_endpoint(server.otlp_traces_endpoint, server.otlp_traces_protocol)
    except ConfigError as err:
        yield error(_CHECK, str(err))
        return
    if not all(map(_is_installed, ("opentelemetry.sdk", _MODULES[endpoint.protocol]))):
        yield error(
            _CHECK,
            f"--otlp-traces-endpoint {server.otlp_traces_endpoint.partition('?')[0]}: OpenTelemetry is not installed; "
            "pip install '.[otel]' in a clone of vllm-cli",
        )


def _is_installed(module: str) -> bool:
    try:
        return find_spec(module) is not None
    except ImportError:
        return False
