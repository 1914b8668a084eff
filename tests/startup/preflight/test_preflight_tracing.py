"""Settings that prevent the export of traces are reported before the start."""

import sys

import pytest

from server.server_config import LoggingConfig
from startup.preflight.run import check_tracing


def config(**options: str) -> LoggingConfig:
    return LoggingConfig(**options)


@pytest.fixture
def nothing_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "opentelemetry", None)


def test_without_the_flag_nothing_is_checked(nothing_installed) -> None:
    assert list(check_tracing(config())) == []


def test_a_missing_library_is_reported_with_the_command_that_installs_it(nothing_installed) -> None:
    (finding,) = check_tracing(config(otlp_traces_endpoint="http://collector:4318/v1/traces"))
    assert finding.severity == "error"
    assert "--otlp-traces-endpoint http://collector:4318/v1/traces" in finding.message
    assert "pip install '.[otel]'" in finding.message


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ({"otlp_traces_endpoint": "ftp://x"}, "--otlp-traces-endpoint must be"),
        (
            {"otlp_traces_endpoint": "http://x:4318", "otlp_traces_protocol": "http/json"},
            "OTEL_EXPORTER_OTLP_TRACES_PROTOCOL must be grpc or http/protobuf, got 'http/json'",
        ),
    ],
)
def test_a_bad_address_or_protocol_is_an_error(options, complaint) -> None:
    (finding,) = check_tracing(config(**options))
    assert complaint in finding.message
