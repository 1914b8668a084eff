"""Typed configuration of `bench serve`; standard library only, built once by the command line."""

from dataclasses import dataclass
from typing import Final

from server.errors import ConfigError
from vllm_cli.bench.config import CompletionConfig, LoadConfig

OPEN_LOOP: Final = 0
"""In place of the number of requests in flight, which an open loop does not choose."""


@dataclass(frozen=True, kw_only=True)
class ServeBenchConfig(LoadConfig, CompletionConfig):
    """The load of `bench serve`."""

    levels: tuple[int, ...] = (1, 8, 32)
    """Numbers of requests in flight; with a request rate, (OPEN_LOOP,)."""
    request_rate: float | None = None
    """Requests per second that an open loop sends, however many are in flight; `inf` sends all at once."""
    num_requests: int | None = None
    """Requests per level and round; None: four for each one in flight, at least 8; 100 in an open loop."""
    max_tokens: int = 64
    prompt_tokens: int = 64
    """Approximate length of the part of a prompt that differs from all others."""
    shared_prefix_tokens: int = 0
    """Approximate length of the beginning that all prompts share."""

    def __post_init__(self) -> None:
        if self.request_rate is not None and not self.request_rate > 0:  # also of `nan`
            raise ConfigError("--request-rate", self.request_rate, "above 0")

    def requests_at(self, level: int) -> int:
        """Requests in one measured round of this level."""
        return self.num_requests or (max(8, 4 * level) if self.request_rate is None else 100)
