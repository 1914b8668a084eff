"""One line of an output file, as `vllm run-batch` writes them."""

import json
from typing import Any, Final, NamedTuple

from vllm_cli.batch.input_file import LinePlace

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
