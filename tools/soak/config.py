"""Typed configuration of one run of the soak test."""

from dataclasses import asdict, dataclass
from typing import Final

from server.errors import ConfigError
from vllm_cli.bench.config import TargetSpec

_MAX_WARM_UP_SHARE: Final = 0.9


@dataclass(frozen=True, kw_only=True)
class SoakConfig:
    """The server, the load, its duration, and the allowed growth."""

    target: TargetSpec
    minutes: float = 30.0
    """Duration of the load, warm-up included."""
    warm_up_share: float = 0.2
    """The share of that time in which caches may fill; not judged."""
    concurrency: int = 12
    """Active clients."""
    burst: int = 64
    """Requests sent at once in a burst; 0: no bursts."""
    burst_interval_s: float = 30.0
    prompt_tokens: int = 600
    """Approximate length of the longest prompts."""
    max_tokens: int = 64
    """Length of the longest answers."""
    sample_interval_s: float = 5.0
    max_growth: float = 0.01
    """Allowed growth of memory in ten minutes, as a share."""
    settle_timeout_s: float = 60.0
    """Time after the load in which files, threads and requests must be released."""
    api_key: str | None = None
    seed: int = 0
    ready_timeout_s: float = 600.0
    request_timeout_s: float = 600.0

    def __post_init__(self) -> None:
        if not 0 <= self.warm_up_share <= _MAX_WARM_UP_SHARE:
            raise ConfigError("--warm-up", f"{self.warm_up_share:.0%}", f"at most {_MAX_WARM_UP_SHARE:.0%}")

    @property
    def load_settings(self) -> dict[str, float]:
        """What describes the load in a result."""
        return {name: value for name, value in asdict(self).items() if isinstance(value, (int, float))}

    @property
    def warm_up_s(self) -> float:
        return self.minutes * 60 * self.warm_up_share

    @property
    def judged_s(self) -> float:
        return self.minutes * 60 - self.warm_up_s
