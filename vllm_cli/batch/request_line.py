"""One line of an input file: a request in OpenAI's batch format."""

import hashlib
import json
from dataclasses import dataclass
from typing import Any, Final

ENDPOINTS: Final = (
    "/v1/chat/completions", "/v1/completions", "/v1/embeddings", "/score", "/v1/score", "/rerank", "/v1/rerank",
    "/v2/rerank", "/pooling", "/classify", "/tokenize", "/detokenize",
)  # fmt: skip
"""The URLs that a request may use: an input file must not reach a server's other routes."""

_NUM_DIGITS: Final = 32


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
