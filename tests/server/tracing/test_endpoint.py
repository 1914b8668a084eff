"""Address and protocol of the collector, from vLLM's flag and OpenTelemetry's variable."""

import pytest

from server.errors import ConfigError
from server.tracing.tracer import TraceEndpoint, read_endpoint

HTTP, GRPC = "http/protobuf", "grpc"


@pytest.mark.parametrize(
    ("address", "protocol", "expected"),
    [
        ("http://collector:4318/v1/traces", None, TraceEndpoint(HTTP, "http://collector:4318/v1/traces", False)),
        ("http://collector:4318", None, TraceEndpoint(HTTP, "http://collector:4318/v1/traces", False)),
        ("https://collector/otlp", None, TraceEndpoint(HTTP, "https://collector/otlp", True)),
        ("grpc://collector:4317", None, TraceEndpoint(GRPC, "collector:4317", False)),
        ("collector:4317", None, TraceEndpoint(GRPC, "collector:4317", False)),
        ("http://collector:4317", None, TraceEndpoint(GRPC, "collector:4317", False)),
        ("https://collector:4317", None, TraceEndpoint(GRPC, "collector:4317", True)),
        ("http://collector:9999", HTTP, TraceEndpoint(HTTP, "http://collector:9999/v1/traces", False)),
        ("http://[::1]:4318/v1/traces", GRPC, TraceEndpoint(GRPC, "[::1]:4318", False)),
        ("grpc://user:sesame@collector:4317", None, TraceEndpoint(GRPC, "collector:4317", False)),
        (
            "http://collector:4318/v1/traces?key=sesame",
            None,
            TraceEndpoint(HTTP, "http://collector:4318/v1/traces", False),
        ),
    ],
)
def test_the_protocol_follows_from_the_address_unless_it_is_given(address, protocol, expected) -> None:
    assert read_endpoint(address, protocol) == expected


@pytest.mark.parametrize("address", ["", "http://", "ftp://collector:4317", "http://collector:port", "://x"])
def test_an_invalid_address_is_named(address: str) -> None:
    with pytest.raises(ConfigError, match="--otlp-traces-endpoint must be an address"):
        read_endpoint(address)


def test_a_key_in_an_invalid_address_is_not_shown() -> None:
    with pytest.raises(ConfigError) as err:
        read_endpoint("ftp://collector:4317/x?key=sesame")
    assert "sesame" not in str(err.value)


def test_an_unknown_protocol_is_named() -> None:
    with pytest.raises(ConfigError, match=r"OTEL_EXPORTER_OTLP_TRACES_PROTOCOL must be grpc or http/protobuf, got 'x'"):
        read_endpoint("http://collector:4318", "x")
