"""Generates valid and malformed requests from the OpenAPI document of a server, one for each seed."""

import json
import random
from collections import Counter
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Final, NamedTuple

from tests.support.http_client import RawClient, request_bytes

MODEL: Final = "tiny"
"""The name that the servers give their model."""
_TEXTS: Final = ("", "a", "\x00", "\ud800", "💥é", "a\n" * 50, "x" * 5000, "<end>", "{{ 1/0 }}", '{"a": [', "-1")
_NUMBERS: Final = (0, 1, -1, 2**31, 2**63, -(2**63) - 1, 10**400, 0.5, 1e308, -0.0, 5e-324, float("nan"), float("inf"))
_DEEP: Final = (json.loads("[" * 140 + "]" * 140), json.loads('{"type":' * 500 + "1" + "}" * 500))
_JUNK: Final = (None, True, False, [], {}, *_TEXTS, *_NUMBERS, *_DEEP)
_PARTS: Final = [{"type": "text", "text": "a"}, {"type": "image_url", "text": "b"}]
_CALL: Final = {"id": "1", "type": "function", "function": {"name": "f", "arguments": "["}}
_MESSAGES: Final = (
    {"role": "user", "content": "a"},
    {"role": "tool", "content": _PARTS},
    {"role": "assistant", "content": None, "tool_calls": [_CALL]},
    {"role": "\ud800", "content": {"a": 1}},
    {"role": "assistant", "content": [{"type": "output_text", "text": "a"}], "status": "incomplete"},
    {"type": "reasoning", "content": [{"type": "reasoning_text", "text": "a"}]},
    {"type": "function_call", "call_id": "1", "name": "f", "arguments": "{}"},
    {"type": "function_call_output", "call_id": "1", "output": "a"},
)
"""Messages for conversations, which the OpenAPI document hardly describes."""
_MOST: Final = {"max_tokens": 4, "max_completion_tokens": 4, "max_output_tokens": 4, "min_tokens": 2, "n": 3}
"""Largest values of these fields in most requests, so that answers come soon."""
_PATHS: Final = ("/", "//", "/%00", "/%ff", "/v1/models/%2e%2e", "/metrics?x=%", "/v1/responses/a%2fb/cancel")
_METHODS: Final = ("GET", "HEAD", "PUT", "DELETE", "OPTIONS", "PATCH", "TRACE", "POST")
_TYPES: Final = (
    "application/json",
    "application/json; charset=utf-16",
    "text/plain",
    "multipart/form-data; boundary=x",
)
_ANSWER_S: Final = 300.0
_NUM_CLIENTS: Final = 8


class FuzzedRequest(NamedTuple):
    method: str
    path: str
    body: bytes
    content_type: str = "application/json"


class RequestFuzzer:
    """Generates requests to some routes of an OpenAPI document."""

    def __init__(self, openapi: dict[str, Any], *paths: str) -> None:
        self._schemas = openapi["components"]["schemas"]
        operations = {path: openapi["paths"][path]["post"] for path in paths}
        self._bodies = {
            path: operation["requestBody"]["content"]["application/json"]["schema"]
            for path, operation in operations.items()
        }

    def request(self, seed: int) -> FuzzedRequest:
        """The request for this seed. One in ten is malformed as HTTP or JSON."""
        rng = random.Random(seed)
        path = rng.choice(list(self._bodies))
        body = json.dumps(_ValueGenerator(rng, self._schemas).body(self._bodies[path])).encode()
        kind = rng.random()
        if kind < 0.02:
            return FuzzedRequest(rng.choice(_METHODS), rng.choice((path, *_PATHS)), body, rng.choice(_TYPES))
        if kind < 0.1:
            cut = rng.randrange(len(body))
            body = body[:cut] + rng.randbytes(rng.randrange(3)) + body[cut + rng.randrange(3) :]
        return FuzzedRequest("POST", path, body)


class _ValueGenerator:
    """Generates values for JSON schemas. Junk replaces some of them."""

    def __init__(self, rng: random.Random, schemas: dict[str, Any]) -> None:
        self._rng = rng
        self._schemas = schemas
        self._junk_share = rng.choice((0.0, 0.0, 0.01, 0.05, 0.3))
        self._field_share = rng.choice((0.01, 0.05, 0.1, 0.3))

    def body(self, schema: dict[str, Any]) -> Any:
        """The body of a request. Most bodies have an existing model and conversation, and want few tokens."""
        body = self.value(schema, 0)
        if not isinstance(body, dict) or self._rng.random() < 0.02:
            return body
        for name, most in _MOST.items():
            if isinstance(body.get(name), int | float):
                body[name] = self._rng.randint(1, most)
        if "model" in body and self._rng.random() < 0.9:
            body["model"] = MODEL
        for name in ("messages", "input"):
            if isinstance(body.get(name), list) and self._rng.random() < 0.6:
                body[name] = self._rng.choices(_MESSAGES, (8, *[1] * (len(_MESSAGES) - 1)), k=self._rng.randint(1, 3))
        for name in ("previous_response_id", "prompt", "conversation", "previous_input_messages"):
            if "input" in body and self._rng.random() < 0.7:
                body.pop(name, None)
        return body

    def value(self, schema: dict[str, Any], depth: int) -> Any:  # noqa: C901
        """A value that fits a schema, or junk."""
        rng = self._rng
        if "$ref" in schema:
            schema = self._schemas[schema["$ref"].rpartition("/")[2]]
        if "anyOf" in schema:
            return self.value(rng.choice(schema["anyOf"]), depth)
        if depth > 5 or rng.random() < self._junk_share:
            return rng.choice(_JUNK)
        if "enum" in schema:
            return rng.choice(schema["enum"])
        match schema.get("type"):
            case "object":
                return self._object(schema, depth + 1)
            case "array":
                size = rng.choice((0, 1, 2, 3, 3, 20)) if rng.random() < 0.99 else 3000 // 10**depth
                return [self.value(schema.get("items", {}), depth + 1) for _ in range(size)]
            case "string":
                return rng.choice((*_TEXTS, "abc {}[]"[: rng.randrange(9)]))
            case "integer" | "number" as kind:
                return self._number(schema, is_whole=kind == "integer")
            case "boolean":
                return rng.random() < 0.5
            case "null":
                return None
            case _:
                return rng.choice(_JUNK)

    def _number(self, schema: dict[str, Any], *, is_whole: bool) -> float:
        low = schema.get("minimum", schema.get("exclusiveMinimum", -5))
        high = min(schema.get("maximum", schema.get("exclusiveMaximum", low + 300)), low + 300)
        return self._rng.randint(int(low), int(high)) if is_whole else round(self._rng.uniform(low, high), 3)

    def _object(self, schema: dict[str, Any], depth: int) -> dict[str, Any]:
        rng = self._rng
        wanted = {*schema.get("required", ()), "prompt", "input"}
        found = {
            name: self.value(inner, depth)
            for name, inner in schema.get("properties", {}).items()
            if rng.random() < (0.97 if name in wanted else self._field_share)
        }
        if isinstance(schema.get("additionalProperties"), dict):
            found |= {rng.choice(("1", "a", "9" * 30)): self.value(schema["additionalProperties"], depth)}
        if rng.random() < self._junk_share / 4:
            found[rng.choice(_TEXTS)] = rng.choice(_JUNK)
        return found


class FuzzCounts(NamedTuple):
    by_status: Counter[int]
    failures: list[str]
    """A text with seed, request and response for each unexpected outcome."""


def send_all(
    port: int, make: Callable[[int], FuzzedRequest], seeds: Iterable[int], *, shed: tuple[int, ...] = ()
) -> FuzzCounts:
    """Sends one request per seed. An overloaded server may reject any request with a status in `shed`."""
    counts = FuzzCounts(Counter(), [])

    def send(seed: int) -> None:
        request = make(seed)
        status, body = _exchange(port, request)
        counts.by_status[status] += 1
        if status not in shed and not _is_expected(request, status, body):
            counts.failures.append(f"seed {seed}: {str(request)[:2000]} -> {status} {body[-500:]!r}")

    with ThreadPoolExecutor(_NUM_CLIENTS) as clients:
        list(clients.map(send, seeds))
    return counts


def _exchange(port: int, request: FuzzedRequest) -> tuple[int, bytes]:
    data = request_bytes(request.path, request.body, method=request.method, content_type=request.content_type)
    try:
        with RawClient(port, timeout_s=_ANSWER_S) as client:
            answer = client.send(data).read(request.method)
    except OSError as err:
        return 599, repr(err).encode()
    return answer.status, answer.body


def _is_expected(request: FuzzedRequest, status: int, body: bytes) -> bool:
    """Whether the response is a success, or an error of the client in the API's format."""
    if status < 400:
        return b'"type":"InternalServerError"' not in body
    if request.method == "HEAD":
        return status < 500
    try:
        error = json.loads(body)["error"]
        return status < 500 and bool(error["message"]) and error["code"] == status
    except (ValueError, LookupError, TypeError):
        return False
