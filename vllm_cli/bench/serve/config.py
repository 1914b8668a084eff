"""Typed configuration of `bench serve`; standard library only, built once by the command line."""

from dataclasses import dataclass

from server.errors import ConfigError
from vllm_cli.bench.config import CompletionConfig, check_counts


@dataclass(frozen=True, kw_only=True)
class ServeBenchConfig(CompletionConfig):
    """The load of `bench serve`."""

    levels: tuple[int, ...] = (1, 8, 32)
    """Numbers of requests in flight."""
    num_requests: int | None = None
    """Requests per level and round; None takes four for each one in flight, at least 8."""
    max_tokens: int = 64
    prompt_tokens: int = 64
    """Approximate length of the part of a prompt that differs from all others."""
    shared_prefix_tokens: int = 0
    """Approximate length of the beginning that all prompts share."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.levels or min(self.levels) < 1:
            raise ConfigError("--concurrency", ",".join(map(str, self.levels)), "a list of numbers, each 1 or more")
        counts = {"--requests": self.num_requests, "--max-tokens": self.max_tokens}
        check_counts(counts | {"--prompt-tokens": self.prompt_tokens})

    def requests_at(self, level: int) -> int:
        """Requests in one measured round of this level."""
        return self.num_requests or max(8, 4 * level)
