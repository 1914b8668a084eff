"""Typed configuration of one run of the soak test; standard library only, built once by the command line."""

from dataclasses import dataclass
from typing import Final

from server.errors import ConfigError
from vllm_cli.bench.config import TargetSpec

_MAX_WARM_UP_SHARE: Final = 0.9


@dataclass(frozen=True, kw_only=True)
class SoakConfig:
    """What is put under load, how much, for how long, and what counts as flat."""

    target: TargetSpec
    minutes: float = 30.0
    """How long the load runs, warm-up included."""
    warm_up_share: float = 0.2
    """The part of that time in which caches may fill; it is not judged."""
    concurrency: int = 12
    """Clients at work at any time."""
    burst: int = 64
    """Requests that come at once from time to time; 0 for none."""
    burst_interval_s: float = 30.0
    prompt_tokens: int = 600
    """About how long the longest prompts are."""
    max_tokens: int = 64
    """How long the longest answers are."""
    sample_interval_s: float = 5.0
    max_growth: float = 0.01
    """Growth of memory in ten minutes, as a share, that is still flat."""
    settle_timeout_s: float = 60.0
    """How long after the load files, threads and requests may take to be gone."""
    api_key: str | None = None
    seed: int = 0
    ready_timeout_s: float = 600.0
    request_timeout_s: float = 600.0

    def __post_init__(self) -> None:
        if not 0 <= self.warm_up_share <= _MAX_WARM_UP_SHARE:
            raise ConfigError("--warm-up", f"{self.warm_up_share:.0%}", f"at most {_MAX_WARM_UP_SHARE:.0%}")

    @property
    def warm_up_s(self) -> float:
        return self.minutes * 60 * self.warm_up_share

    @property
    def judged_s(self) -> float:
        return self.minutes * 60 - self.warm_up_s
