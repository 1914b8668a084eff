"""Typed configuration that benchmarks share; standard library only, built once by the command line."""

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
    """A server to measure: the address of a running one, or the command that starts one."""

    name: str
    url: str | None = None
    command: str | None = None
    """Shell words; `{port}` is replaced by a free port, without it `--port N` is appended."""
    model: str | None = None
    """The model name to request; None takes the first one that the server lists."""


@dataclass(frozen=True, kw_only=True)
class ServersConfig:
    """The servers to measure, the number of rounds, and how servers are treated."""

    targets: tuple[TargetSpec, ...]
    """The first is side A; the others are compared with it."""
    num_rounds: int = 3
    api_key: str | None = None
    idle: IdlePolicy = "pause"
    """What happens to a started server while another one is measured."""
    seed: int = 0
    """Seed of the requests."""
    ready_timeout_s: float = 600.0
    request_timeout_s: float = 600.0

    def __post_init__(self) -> None:
        if not self.targets:
            raise ConfigError("--cmd or --url", None, "given")
        check_counts({"--rounds": self.num_rounds})


@dataclass(frozen=True, kw_only=True)
class CompletionConfig(ServersConfig):
    """How completions are requested."""

    endpoint: Endpoint = "completions"
    ignore_eos: bool = True
    stream: bool = True


def check_counts(counts: Mapping[str, int | None]) -> None:
    """Raises a ConfigError that names the first option whose value is less than 1."""
    for option, value in counts.items():
        if value is not None and value < 1:
            raise ConfigError(option, value, "1 or more")


@dataclass(frozen=True, kw_only=True)
class Files:
    """The baseline to compare with, and where the result is written."""

    json_path: Path | None = None
    """`-` is standard output; the report then goes to standard error."""
    html_path: Path | None = None
    baseline_path: Path | None = None
    tolerance: float | None = None
    """The accepted loss as a share; None: 5 % against a baseline, no judgement against the other sides."""
