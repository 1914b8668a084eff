"""Sends spans to a collector (`--otlp-traces-endpoint`); the only module that imports OpenTelemetry.

Spans are created when a request has ended, from its recorded times: until then tracing costs only a few
attributes. OpenTelemetry's own thread sends them.
"""

import json
import logging
import os
import threading
import time
from collections.abc import Callable
from typing import Any, Final, Literal, NamedTuple
from urllib.parse import urlsplit

from server.errors import ConfigError
from server.server_config import ServerConfig
from server.tracing.span import CONTEXT_HEADERS, RequestTrace, Span, describe_request, describe_start

logger = logging.getLogger(__name__)

_SERVICE: Final = "vllm-cli"
_HTTP: Final = "http/protobuf"
_GRPC: Final = "grpc"
_HTTP_PORT: Final = 4318
_HTTP_PATH: Final = "/v1/traces"
_CLOSE_S: Final = 5.0
"""How long sending the last spans may take, so that an unreachable collector does not delay the exit."""


class Tracer:
    """One per server; every method but `close` runs on the event loop and does not block."""

    def __init__(self, config: ServerConfig, version: str) -> None:
        """Raises ConfigError if the endpoint is not an address."""
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor

        endpoint = read_endpoint(str(config.logging.otlp_traces_endpoint), config.logging.otlp_traces_protocol)
        self._model_name = config.served_model_names[0]
        self._provider = TracerProvider(resource=_create_resource(version), shutdown_on_exit=False)
        self._provider.add_span_processor(BatchSpanProcessor(_create_exporter(endpoint)))
        self._tracer = self._provider.get_tracer(_SERVICE, version)

    def begin_request(self, read_header: Callable[[bytes], str | None]) -> RequestTrace:
        """The record that the request's layers fill in; its headers contain the trace that it belongs to."""
        given = {name: read_header(name.encode()) for name in CONTEXT_HEADERS}
        return RequestTrace({name: value for name, value in given.items() if value is not None})

    def end_request(self, trace: RequestTrace) -> None:
        """Sends the spans of an ended request."""
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        if not trace.has_reached_engine:
            return
        end_s = time.perf_counter()
        offset_ns = time.time_ns() - time.perf_counter_ns()
        span = describe_request(trace, model_name=self._model_name, end_s=end_s, offset_ns=offset_ns)
        self._send(span, TraceContextTextMapPropagator().extract(trace.headers))

    def record_start(self, report: bytes) -> None:
        """Sends the spans of a start that has just ended; `report` is the body of /startupz."""
        from opentelemetry.context import Context

        self._send(describe_start(json.loads(report), ready_ns=time.time_ns()), Context())

    def close(self) -> None:
        """Sends the remaining spans, within a time limit."""
        closing = threading.Thread(target=self._provider.shutdown, name="tracer-close", daemon=True)
        closing.start()
        closing.join(_CLOSE_S)
        if closing.is_alive():
            logger.warning("the last spans could not be sent within %g s", _CLOSE_S)

    def _send(self, span: Span, parent: Any) -> None:
        from opentelemetry.trace import SpanKind, Status, StatusCode, set_span_in_context

        sent = self._tracer.start_span(
            span.name,
            context=parent,
            kind=SpanKind.SERVER if span.is_server else SpanKind.INTERNAL,
            attributes=dict(span.attributes),
            start_time=span.begin_ns,
        )
        for name, when_ns in span.events.items():
            sent.add_event(name, timestamp=when_ns)
        if span.error is not None:
            sent.set_status(Status(StatusCode.ERROR, span.error))
        within = set_span_in_context(sent, parent)
        for child in span.children:
            self._send(child, within)
        sent.end(span.end_ns)


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


def _create_resource(version: str) -> Any:
    """OpenTelemetry itself reads OTEL_SERVICE_NAME and OTEL_RESOURCE_ATTRIBUTES."""
    from opentelemetry.sdk.resources import Resource

    resource = Resource.create({"process.pid": os.getpid(), "service.version": version})
    if str(resource.attributes.get("service.name", "unknown_service")).startswith("unknown_service"):
        resource = resource.merge(Resource({"service.name": _SERVICE}))
    return resource


def _create_exporter(endpoint: TraceEndpoint) -> Any:
    if endpoint.protocol == "grpc":
        from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter as GrpcExporter

        return GrpcExporter(endpoint=endpoint.url, insecure=not endpoint.is_secure)
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter as HttpExporter

    return HttpExporter(endpoint=endpoint.url)
