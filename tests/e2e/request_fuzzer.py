"""Generates malformed requests from the server's OpenAPI document; each seed generates one request.

`send_all` sends many requests over a few connections and counts the responses.
"""

import http.client
import json
import random
from collections import Counter
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from threading import local
from typing import Any, NamedTuple

MODEL = "tiny"
"""The name that the servers give their model."""
_TEXTS = ("", "a", "\x00", "\ud800", "\udfff\ud800", "💥é", "a\n" * 50, "x" * 5000, "<end>", "{{ 1/0 }}", "json", "-1")
_NUMBERS = (0, 1, -1, 2, 2**31 - 1, 2**31, 2**63, -(2**63) - 1, 2**64, 10**400, 0.5, 1e308, -0.0, 5e-324, 1e-9)
_CONSTANTS = (None, True, False, float("nan"), float("inf"), -float("inf"))
_METHODS = ("GET", "HEAD", "PUT", "DELETE", "OPTIONS", "PATCH", "TRACE", "POST")
_TYPES = ("application/json", "application/json; charset=utf-16", "text/plain", "", "multipart/form-data; boundary=x")
_PATHS = (
    "/",
    "/v1",
    "//",
    "/%00",
    "/%ff",
    "/v1/models/%2e%2e",
    "/v1/chat/completions/",
    "/docs",
    "/..%2f",
    "/metrics?x=%",
    "/v1/responses/%00",
    "/v1/responses/a%2fb/cancel",
    "/v1/responses/a?stream=1&starting_after=%ff",
)
_SMALL = {
    "max_tokens": 4,
    "max_completion_tokens": 4,
    "max_output_tokens": 4,
    "min_tokens": 2,
    "n": 3,
    "best_of": 3,
    "prompt_logprobs": 2,
}
"""Largest values in most requests, so that they are answered soon."""
_DEEPEST = 5
_ANSWER_S = 300.0
_NUM_CLIENTS = 8


class FuzzedRequest(NamedTuple):
    """One request."""

    method: str
    path: str
    body: bytes
    content_type: str


class RequestFuzzer:
    """Generates requests to the routes of an OpenAPI document."""

    def __init__(self, openapi: dict[str, Any], *often: str) -> None:
        """At least three of four requests go to the paths in `often`."""
        self._schemas = openapi["components"]["schemas"]
        self._bodies = {
            path: operations["post"]["requestBody"]["content"]["application/json"]["schema"]
            for path, operations in openapi["paths"].items()
            if "requestBody" in operations.get("post", {})
        }
        self.paths = sorted(self._bodies)
        self._often = often or self.paths

    def request(self, seed: int) -> FuzzedRequest:
        """The request of a seed; one in ten is malformed as HTTP or JSON."""
        rng = random.Random(seed)
        path = rng.choice(self._often if rng.random() < 0.75 else self.paths)
        body = _BodyGenerator(rng, self._schemas).body(self._bodies[path])
        kind = rng.random()
        if kind < 0.04:
            body = bytes(rng.randrange(256) for _ in range(rng.randrange(60)))
        elif kind < 0.08 and body:
            cut = rng.randrange(len(body))
            body = body[:cut] + bytes([rng.randrange(256)]) * rng.randrange(3) + body[cut + rng.randrange(3) :]
        elif kind < 0.1:
            return FuzzedRequest(rng.choice(_METHODS), rng.choice((path, *_PATHS)), body, rng.choice(_TYPES))
        return FuzzedRequest("POST", path, body, "application/json")


class _BodyGenerator:
    """Generates one body."""

    def __init__(self, rng: random.Random, schemas: dict[str, Any]) -> None:
        self._rng = rng
        self._schemas = schemas
        self._junk_share = rng.choice((0.0, 0.0, 0.01, 0.05, 0.3))
        self._field_share = rng.choice((0.01, 0.05, 0.1, 0.3))

    def body(self, schema: dict[str, Any]) -> bytes:
        schema = self._resolved(schema)
        value = self._value(schema, 0)
        if isinstance(value, dict) and self._rng.random() < 0.98:
            value = self._bounded(value, schema)
        return json.dumps(value, ensure_ascii=True).encode()

    def _resolved(self, schema: dict[str, Any]) -> dict[str, Any]:
        return self._schemas[schema["$ref"].rpartition("/")[2]] if "$ref" in schema else schema

    def _bounded(self, body: dict[str, Any], schema: dict[str, Any]) -> dict[str, Any]:
        for name, most in _SMALL.items():
            if isinstance(body.get(name), int | float) and body[name] > most:
                body[name] = self._rng.randint(1, most)
        if self._rng.random() < 0.9:
            body.pop("model", None)
            if "model" in schema.get("required", ()):
                body["model"] = MODEL
        is_described = "$ref" in schema.get("properties", {}).get("messages", {}).get("items", {})
        if body.get("messages") == [{}] or "messages" in body and not is_described and self._rng.random() < 0.7:
            body["messages"] = [self._message() for _ in range(self._rng.randint(1, 3))]
        if "previous_response_id" in schema.get("properties", {}):
            self._make_sensible(body)
        return body

    def _make_sensible(self, body: dict[str, Any]) -> None:
        """Replaces some fields of /v1/responses, which are seldom valid otherwise."""
        rng = self._rng
        if rng.random() < 0.7:
            body["input"] = rng.choice((self._text(), [self._item() for _ in range(rng.randint(1, 3))]))
        for name, value in (("tools", [{"type": "function", "name": "f"}]), ("tool_choice", "auto")):
            if name in body and rng.random() < 0.7:
                body[name] = value
        for name in ("previous_response_id", "prompt", "conversation", "previous_input_messages"):
            if rng.random() < 0.7:
                body.pop(name, None)

    def _item(self) -> dict[str, Any]:
        rng = self._rng
        content = rng.choice((self._text(), [{"type": "input_text", "text": self._text()}], self._junk(3)))
        return rng.choice(
            (
                {"role": rng.choice(("user", "assistant", "system")), "content": content},
                {"type": "reasoning", "content": [{"type": "reasoning_text", "text": self._text()}]},
                {"type": "function_call", "call_id": "1", "name": "f", "arguments": rng.choice(("{}", "["))},
                {"type": "function_call_output", "call_id": "1", "output": content},
            )
        ) | ({"status": rng.choice(("incomplete", "completed", "x"))} if rng.random() < 0.3 else {})

    def _message(self) -> dict[str, Any]:
        rng = self._rng
        parts = [{"type": rng.choice(("text", "image_url", "refusal", "x")), "text": self._text()} for _ in range(2)]
        message: dict[str, Any] = {
            "role": rng.choice(("user", "assistant", "system", "tool", "developer", self._text())),
            "content": rng.choice((self._text(), parts, None, self._junk(2))),
        }
        if rng.random() < 0.2:
            call = {"id": "1", "type": "function", "function": {"name": "f", "arguments": rng.choice(("{}", "[", "1"))}}
            message["tool_calls"] = rng.choice(([call], [{}], self._junk(2)))
        return message

    def _value(self, schema: dict[str, Any], depth: int) -> Any:  # noqa: C901
        rng = self._rng
        if rng.random() < self._junk_share:
            return self._junk(depth)
        if "$ref" in schema:
            return self._value(self._resolved(schema), depth)
        if "anyOf" in schema:
            return self._value(rng.choice(schema["anyOf"]), depth)
        if "enum" in schema:
            return rng.choice(schema["enum"])
        match schema.get("type"):
            case "object" if depth < _DEEPEST:
                return self._object(schema, depth)
            case "array" if depth < _DEEPEST:
                size = rng.choice((0, 1, 2, 3, 3, 20)) if rng.random() < 0.99 else 3000
                return [self._value(schema.get("items", {}), depth + 1) for _ in range(min(size, 3000 // 10**depth))]
            case "string":
                return self._text()
            case "integer" | "number" as kind:
                return self._number(schema, is_whole=kind == "integer")
            case "boolean":
                return rng.random() < 0.5
            case "null":
                return None
            case _:
                return self._junk(depth)

    def _object(self, schema: dict[str, Any], depth: int) -> dict[str, Any]:
        rng, required = self._rng, schema.get("required", ())
        found = {
            name: self._value(field, depth + 1)
            for name, field in schema.get("properties", {}).items()
            if rng.random() < (0.97 if name in required or name in ("prompt", "input") else self._field_share)
        }
        extra = schema.get("additionalProperties")
        if isinstance(extra, dict):
            found |= {rng.choice(("1", "a", "-1", "9" * 30)): self._value(extra, depth + 1) for _ in range(2)}
        if rng.random() < self._junk_share / 4:
            found[self._text()] = self._junk(depth)
        return found

    def _number(self, schema: dict[str, Any], *, is_whole: bool) -> Any:
        rng = self._rng
        low = schema.get("minimum", schema.get("exclusiveMinimum", -5))
        high = min(schema.get("maximum", schema.get("exclusiveMaximum", low + 300)), low + 300)
        return rng.randint(int(low), int(high)) if is_whole else round(rng.uniform(low, high), 3)

    def _text(self) -> str:
        rng = self._rng
        return rng.choice(_TEXTS) if rng.random() < 0.3 else "".join(rng.choices('abc {}[]":\\1é', k=rng.randrange(20)))

    def _junk(self, depth: int) -> Any:
        rng = self._rng
        kind = rng.random()
        if kind < 0.3 or depth >= _DEEPEST:
            return rng.choice((*_NUMBERS, *_CONSTANTS))
        if kind < 0.6:
            return self._text()
        if kind < 0.62:
            return _nested(rng.choice((20, 100, 140, 900)), is_list=rng.random() < 0.5)
        if kind < 0.8:
            return [self._junk(depth + 1) for _ in range(rng.randrange(4))]
        return {self._text(): self._junk(depth + 1) for _ in range(rng.randrange(4))}


def _nested(levels: int, *, is_list: bool) -> Any:
    value: Any = 1
    for _ in range(levels):
        value = [value] if is_list else {"type": value}
    return value


@dataclass
class FuzzCounts:
    """The responses of a run."""

    by_status: Counter[int] = field(default_factory=Counter)
    failures: list[str] = field(default_factory=list)
    """Seeds and responses of unexpected outcomes."""

    @property
    def num_requests(self) -> int:
        return sum(self.by_status.values())

    def note(self, seed: int, request: FuzzedRequest, status: int, body: bytes) -> None:
        self.by_status[status] += 1
        problem = None
        if status >= 500:
            problem = body
        elif status >= 400 and request.method != "HEAD":
            problem = _envelope_fault(status, body)
        elif b'"type":"InternalServerError"' in body:
            problem = body[-500:]
        if problem is not None:
            self.failures.append(
                f"seed {seed}: {request.method} {request.path} {request.body[:2000]!r} -> {status} {problem!r}"
            )


def send_all(
    port: int, make: Callable[[int], FuzzedRequest], seeds: Iterable[int], *, shed: tuple[int, ...] = ()
) -> FuzzCounts:
    """Sends one request per seed; on each connection one after another.

    `shed` are statuses with which an overloaded server may refuse any of them.
    """
    counts, own = FuzzCounts(), local()
    connections: list[http.client.HTTPConnection] = []

    def connect() -> None:
        own.connection = http.client.HTTPConnection("127.0.0.1", port, timeout=_ANSWER_S)
        connections.append(own.connection)

    def send(seed: int) -> tuple[int, FuzzedRequest, int, bytes]:
        request = make(seed)
        return seed, request, *_exchange(own.connection, request)

    with ThreadPoolExecutor(_NUM_CLIENTS, initializer=connect) as clients:
        for sent in clients.map(send, seeds):
            if sent[2] not in shed:
                counts.note(*sent)
    for connection in connections:
        connection.close()
    return counts


def _exchange(connection: http.client.HTTPConnection, request: FuzzedRequest) -> tuple[int, bytes]:
    headers = {"content-type": request.content_type} if request.content_type else {}
    for _ in range(3):
        try:
            connection.request(request.method, request.path, request.body, headers)
            response = connection.getresponse()
            body = response.read()
        except TimeoutError:
            connection.close()
            return 599, b"no answer"
        except (ConnectionError, http.client.HTTPException):
            connection.close()  # the server may close an idle connection while the request is in flight
        else:
            return response.status, body
    return 598, b"the connection was closed without an answer, three times"


def _envelope_fault(status: int, body: bytes) -> bytes | None:
    try:
        error = json.loads(body)["error"]
        is_good = isinstance(error["message"], str) and error["message"] and error["code"] == status
    except (ValueError, LookupError, TypeError):
        is_good = False
    return None if is_good else body
