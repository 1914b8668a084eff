"""A trace collector: prints its port, then each received span as a line of JSON.

It is a program because it needs packages of the extra `otel`: `python otlp_receiver.py http|grpc`.
"""

import gzip
import json
import sys
from concurrent import futures
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from google.protobuf.json_format import MessageToDict
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)


def print_json(line: Any) -> None:
    print(json.dumps(line), flush=True)


def record(request: Any) -> None:
    for resource_spans in request.resource_spans:
        resource = _attributes(MessageToDict(resource_spans.resource))
        for scope_spans in resource_spans.scope_spans:
            for span in scope_spans.spans:
                fields = MessageToDict(span)
                extra = {
                    "attributes": _attributes(fields),
                    "events": [event["name"] for event in fields.get("events", ())],
                    "resource": resource,
                    "traceId": span.trace_id.hex(),
                    "spanId": span.span_id.hex(),
                    "parentSpanId": span.parent_span_id.hex(),
                    "begin_ns": span.start_time_unix_nano,
                    "end_ns": span.end_time_unix_nano,
                }
                print_json(fields | extra)


def _attributes(fields: dict[str, Any]) -> dict[str, Any]:
    return {entry["key"]: next(iter(entry["value"].values())) for entry in fields.get("attributes", ())}


class Handler(BaseHTTPRequestHandler):
    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        if self.headers.get("Content-Encoding") == "gzip":
            body = gzip.decompress(body)
        is_valid = self.path == "/v1/traces" and self.headers["Content-Type"] == "application/x-protobuf"
        if is_valid:
            record(ExportTraceServiceRequest.FromString(body))
        answer = ExportTraceServiceResponse().SerializeToString()
        self.send_response(200 if is_valid else 404)
        self.send_header("Content-Type", "application/x-protobuf")
        self.send_header("Content-Length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)

    def log_message(self, *_: object) -> None:
        pass


def serve_http() -> None:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    print_json({"port": server.server_port})
    server.serve_forever()


def serve_grpc() -> None:
    import grpc
    from opentelemetry.proto.collector.trace.v1 import trace_service_pb2_grpc

    class Collector(trace_service_pb2_grpc.TraceServiceServicer):
        def Export(self, request: Any, context: Any) -> Any:
            record(request)
            return ExportTraceServiceResponse()

    server = grpc.server(futures.ThreadPoolExecutor(2))
    trace_service_pb2_grpc.add_TraceServiceServicer_to_server(Collector(), server)
    print_json({"port": server.add_insecure_port("127.0.0.1:0")})
    server.start()
    server.wait_for_termination()


if __name__ == "__main__":
    {"http": serve_http, "grpc": serve_grpc}[sys.argv[1]]()
