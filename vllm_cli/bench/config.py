"""Typed configuration that benchmarks share; standard library only, built once by the command line."""

from dataclasses import asdict, dataclass
from math import inf
from pathlib import Path
from typing import Any, Literal

Endpoint = Literal["completions", "chat"]
IdlePolicy = Literal["pause", "run", "stop"]


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
class BenchConfig:
    """The servers to measure, and how they are asked."""

    targets: tuple[TargetSpec, ...]
    """The first is side A; the others are compared with it."""
    num_rounds: int = 3
    api_key: str | None = None
    ready_timeout_s: float = 600.0
    request_timeout_s: float = 600.0

    @property
    def settings(self) -> dict[str, Any]:
        """The fields for the result file, without commands and keys; JSON has no infinite numbers."""
        fields = {name: value for name, value in asdict(self).items() if name not in ("targets", "api_key")}
        return {name: "inf" if value == inf else value for name, value in fields.items()}


@dataclass(frozen=True, kw_only=True)
class LoadConfig(BenchConfig):
    """A load on one of several servers."""

    idle: IdlePolicy = "pause"
    """What happens to a started server while another one is measured."""
    seed: int = 0
    """Seed of the requests."""


@dataclass(frozen=True, kw_only=True)
class CompletionConfig(BenchConfig):
    """How completions are requested."""

    endpoint: Endpoint = "completions"
    ignore_eos: bool = True

    @property
    def path(self) -> str:
        """The route of the requests."""
        return "/v1/chat/completions" if self.endpoint == "chat" else "/v1/completions"


@dataclass(frozen=True, kw_only=True)
class Output:
    """Where the result is written, and how it is judged."""

    json_path: Path | None = None
    """`-` is standard output; the report then goes to standard error."""
    tolerance: float | None = None
    """The accepted loss against the other sides as a share; None: no judgement."""
