"""One streamed completion, and the moment at which its first text arrives."""

from contextlib import closing
from dataclasses import dataclass
from time import monotonic_ns
from typing import Any, Final

from vllm_cli.client.server import ServerClient
from vllm_cli.client.server_address import parse_url
from vllm_cli.errors import ConnectionFailedError

_PROMPT: Final = "The capital of France is"
_MAX_TOKENS: Final = 4


@dataclass(frozen=True, kw_only=True)
class CompletionRequest:
    """How a completion is requested from one server."""

    base_url: str
    path: str
    """`/v1/completions` or `/v1/chat/completions`."""
    model: str
    api_key: str | None

    @property
    def server(self) -> ServerClient:
        return ServerClient(parse_url(self.base_url), self.api_key)

    def find_first_text(self) -> int | None:
        """Sends a greedy request and reads its answer to the end. Without text, raises ConnectionFailedError.

        Returns when the first text arrived, on the monotonic clock. None for an empty answer. How the stream
        ends does not matter: `transformers serve` sends no `[DONE]`.
        """
        first_ns: int | None = None
        try:
            with closing(self.server.stream(self.path, self._body())) as pieces:
                for piece in pieces:
                    if first_ns is None and piece.text:
                        first_ns = monotonic_ns()
        except ConnectionFailedError:
            if first_ns is None:
                raise
        return first_ns

    def _body(self) -> dict[str, Any]:
        is_chat = self.path.endswith("/chat/completions")
        content = {"messages": [{"role": "user", "content": _PROMPT}]} if is_chat else {"prompt": _PROMPT}
        return {"model": self.model, "max_tokens": _MAX_TOKENS, "temperature": 0, **content}
