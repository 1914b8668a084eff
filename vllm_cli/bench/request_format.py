"""The format of completion requests to one server: model name and accepted optional fields."""

from dataclasses import dataclass, field
from typing import Any, Literal

import msgspec

from vllm_cli.bench.config import CompletionConfig

TokenSource = Literal["usage", "chunks"]

_PATHS = {"completions": "/v1/completions", "chat": "/v1/chat/completions"}


@dataclass(frozen=True, kw_only=True)
class RequestFormat:
    """How completion requests to one server are written."""

    base_url: str
    model: str
    config: CompletionConfig
    optional: dict[str, Any] = field(default_factory=dict)
    """Optional fields that the server accepts."""
    token_source: TokenSource = "usage"
    """Where the numbers of generated tokens come from."""

    @property
    def url(self) -> str:
        return self.base_url + _PATHS[self.config.endpoint]

    @property
    def headers(self) -> dict[str, str]:
        return request_headers(self.config.api_key)

    def body(self, prompt: str, *, max_tokens: int) -> bytes:
        """One encoded greedy request."""
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


def list_optional_fields(config: CompletionConfig) -> list[dict[str, Any]]:
    """Sets of optional fields to try, best first; the last one is empty."""
    ignore_eos = {"ignore_eos": True} if config.ignore_eos else {}
    usage = {"stream_options": {"include_usage": True}} if config.stream else {}
    candidates: list[dict[str, Any]] = []
    for candidate in (ignore_eos | usage, usage, ignore_eos, {}):
        if candidate not in candidates:
            candidates.append(candidate)
    return candidates
