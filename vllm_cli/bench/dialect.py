"""What one server understands: its model's name and which optional request fields it takes."""

from dataclasses import dataclass, field
from typing import Any, Literal

import msgspec

from vllm_cli.bench.config import BenchConfig

TokenSource = Literal["usage", "chunks"]

_PATHS = {"completions": "/v1/completions", "chat": "/v1/chat/completions"}


@dataclass(frozen=True, kw_only=True)
class Dialect:
    """How requests to one server are written."""

    base_url: str
    model: str
    config: BenchConfig
    optional: dict[str, Any] = field(default_factory=dict)
    """Fields beyond the common ones, as far as the server takes them."""
    token_source: TokenSource = "usage"
    """Where the counts of generated tokens come from."""

    @property
    def url(self) -> str:
        return self.base_url + _PATHS[self.config.endpoint]

    @property
    def headers(self) -> dict[str, str]:
        return request_headers(self.config.api_key)

    def body(self, prompt: str, *, max_tokens: int) -> bytes:
        """One greedy request, ready to be sent."""
        content: dict[str, Any]
        if self.config.endpoint == "chat":
            content = {"messages": [{"role": "user", "content": prompt}]}
        else:
            content = {"prompt": prompt}
        common = {"model": self.model, "max_tokens": max_tokens, "temperature": 0, "stream": self.config.stream}
        return msgspec.json.encode(common | content | self.optional)


def request_headers(api_key: str | None) -> dict[str, str]:
    """Headers of every request."""
    headers = {"Content-Type": "application/json"}
    return headers | {"Authorization": f"Bearer {api_key}"} if api_key else headers


def optional_fields(config: BenchConfig) -> list[dict[str, Any]]:
    """Sets of optional fields to try, best first; the last one is empty."""
    ignore_eos = {"ignore_eos": True} if config.ignore_eos else {}
    usage = {"stream_options": {"include_usage": True}} if config.stream else {}
    ladder: list[dict[str, Any]] = []
    for candidate in (ignore_eos | usage, usage, ignore_eos, {}):
        if candidate not in ladder:
            ladder.append(candidate)
    return ladder
