"""Lines of the input file and of the output file of a batch."""

import hashlib
import json
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

ENDPOINTS: Final = (
    "/v1/chat/completions", "/v1/completions", "/v1/embeddings", "/score", "/v1/score", "/rerank", "/v1/rerank",
    "/v2/rerank", "/pooling", "/classify", "/tokenize", "/detokenize",
)  # fmt: skip
"""The URLs that a request may use: an input file must not reach a server's other routes."""

_NUM_DIGITS: Final = 32


class LinePlace(NamedTuple):
    """The position of a request in the file, and the id of its result."""

    custom_id: str
    id: str
    offset: int
    num_bytes: int


class LineError(ValueError):
    """The line is not a request; the message has the reason."""


@dataclass(frozen=True)
class BatchRequest:
    """A request and the id of its result."""

    custom_id: str
    method: str
    url: str
    body: dict[str, Any]

    @classmethod
    def from_line(cls, line: bytes) -> "BatchRequest":
        """Parses a line; raises LineError if it is not a request."""
        try:
            fields = json.loads(line)
        except (ValueError, RecursionError) as err:
            raise LineError(f"is not JSON ({err})") from err
        if not isinstance(fields, dict):
            raise LineError("is not a JSON object")
        return cls(
            custom_id=_take(fields, "custom_id", str, "a text"),
            method=_take(fields, "method", str, "a text"),
            url=_take(fields, "url", str, "a text"),
            body=_take(fields, "body", dict, "an object"),
        )

    @property
    def id(self) -> str:
        """A hash of the content: equal in every run, different for a changed request."""
        content = json.dumps([self.custom_id, self.method, self.url, self.body], sort_keys=True)
        return f"vllm-{hashlib.sha256(content.encode()).hexdigest()[:_NUM_DIGITS]}"

    @property
    def rejection(self) -> str | None:
        """Why the request is not sent; None if it is sent."""
        if self.method != "POST":
            return f"Method {self.method} was used. Only POST is supported."
        if self.url not in ENDPOINTS:
            return f"URL {self.url} was used. Supported endpoints: {', '.join(ENDPOINTS)}."
        if self.body.get("stream"):
            return "Request must not be sent in stream mode"
        return None


def _take(fields: dict[str, Any], name: str, kind: type[Any], wanted: str) -> Any:
    if name not in fields:
        raise LineError(f"has no {name!r}")
    value = fields[name]
    if not isinstance(value, kind) or not (value or kind is dict):
        raise LineError(f"has {json.dumps(value)[:60]} as {name!r}, which must be {wanted}")
    return value


BEGINNING: Final = b'{"id":"vllm-'
"""The beginning of every line, by which an output file is recognised."""


class RecordedResult(NamedTuple):
    """A line of an output file."""

    custom_id: str
    id: str
    is_failed: bool


class Result(NamedTuple):
    """The outcome of one request."""

    recorded: RecordedResult
    line: bytes
    usage: dict[str, Any]


def request_id(place: LinePlace) -> str:
    """The request id that the server gets, so that it appears in the server's log."""
    return place.id.replace("vllm-", "vllm-batch-", 1)


def answered(place: LinePlace, status: int, content: bytes) -> Result:
    """The result for a response of the server, successful or not."""
    try:
        body = json.loads(content)
    except (ValueError, RecursionError):
        text = " ".join(content.decode(errors="replace").split())[:1000]
        return rejected(
            place, text or f"The server answered {status} without a body.", status if status >= 400 else 502
        )
    # A body on one line is copied unchanged.
    raw = content.strip().decode() if b"\n" not in content.strip() else json.dumps(body)
    if status >= 400 or not isinstance(body, dict):
        return _failed(place, _response(place, status, "null"), raw)
    line = _line(place, _response(place, status, raw), "null")
    return Result(RecordedResult(place.custom_id, place.id, is_failed=False), line, body.get("usage") or {})


def rejected(place: LinePlace, message: str, status: int = 400) -> Result:
    """The result for a request that is not sent, or whose response cannot be read; in vLLM's format."""
    return _failed(place, _response(place, status, "null"), json.dumps(message))


def lost(place: LinePlace, code: str, message: str) -> Result:
    """The result for a request without a response."""
    return _failed(place, "null", json.dumps({"code": code, "message": message}))


def parse(line: bytes) -> RecordedResult | None:
    """Reads a line of an output file; None if it is not a result."""
    try:
        fields = json.loads(line)
        is_failed = fields["error"] is not None
        recorded = RecordedResult(fields["custom_id"], fields["id"], is_failed)
    except (ValueError, KeyError, TypeError, RecursionError):
        return None
    return recorded if isinstance(recorded.custom_id, str) and isinstance(recorded.id, str) else None


def _failed(place: LinePlace, response: str, error: str) -> Result:
    recorded = RecordedResult(place.custom_id, place.id, is_failed=True)
    return Result(recorded, _line(place, response, error), {})


def _response(place: LinePlace, status: int, body: str) -> str:
    return f'{{"status_code":{status},"request_id":"{request_id(place)}","body":{body}}}'


def _line(place: LinePlace, response: str, error: str) -> bytes:
    custom_id = json.dumps(place.custom_id)
    return f'{{"id":"{place.id}","custom_id":{custom_id},"response":{response},"error":{error}}}\n'.encode()
