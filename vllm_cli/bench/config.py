"""Typed configuration of one benchmark run; standard library only, built once by the command line."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from server.errors import ConfigError

Endpoint = Literal["completions", "chat"]
IdlePolicy = Literal["pause", "run", "stop"]

DEFAULT_TOLERANCE = 0.05


@dataclass(frozen=True, kw_only=True)
class TargetSpec:
    """One side of the comparison: a server that runs already, or the command that starts one."""

    name: str
    url: str | None = None
    command: str | None = None
    """Shell words; `{port}` is replaced by a free port, without it `--port N` is appended."""
    model: str | None = None
    """The model name to request; None takes the first one that the server lists."""


@dataclass(frozen=True, kw_only=True)
class BenchConfig:
    """What to measure, how often, and against whom."""

    targets: tuple[TargetSpec, ...]
    """The first is side A; the others are compared with it."""
    levels: tuple[int, ...] = (1, 8, 32)
    """Numbers of requests in flight."""
    num_requests: int | None = None
    """Requests per level and round; None takes four for each one in flight, at least 8."""
    max_tokens: int = 64
    num_rounds: int = 3
    endpoint: Endpoint = "completions"
    prompt_tokens: int = 64
    """About how long the prompts are."""
    ignore_eos: bool = True
    stream: bool = True
    api_key: str | None = None
    idle: IdlePolicy = "pause"
    """What a started server does while another one is measured."""
    seed: int = 0
    """Seed of the prompts."""
    ready_timeout_s: float = 600.0
    request_timeout_s: float = 600.0

    def __post_init__(self) -> None:
        if not self.targets:
            raise ConfigError("--cmd or --url", None, "given")
        if not self.levels or min(self.levels) < 1:
            raise ConfigError("--concurrency", ",".join(map(str, self.levels)), "a list of numbers, each 1 or more")
        counts = {"--requests": self.num_requests, "--max-tokens": self.max_tokens, "--rounds": self.num_rounds}
        check_counts(counts | {"--prompt-tokens": self.prompt_tokens})

    def requests_at(self, level: int) -> int:
        """Requests of one measured round at this many in flight."""
        return self.num_requests or max(8, 4 * level)


def check_counts(counts: Mapping[str, int | None]) -> None:
    """Each option's value, where it has one, is 1 or more; else a ConfigError names the option."""
    for option, value in counts.items():
        if value is not None and value < 1:
            raise ConfigError(option, value, "1 or more")


@dataclass(frozen=True, kw_only=True)
class Files:
    """What the run is compared with and where its result goes."""

    json_path: Path | None = None
    """`-` is standard output; the report then goes to standard error."""
    html_path: Path | None = None
    baseline_path: Path | None = None
    tolerance: float | None = None
    """How much slower is still fine; None takes 5 % for a baseline and does not judge the other sides."""
