"""Configuration that both benchmarks share; standard library only, built once by the command line."""

from dataclasses import asdict, dataclass
from typing import Any


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
    """The servers to measure, and how completions are requested."""

    targets: tuple[TargetSpec, ...]
    """The first is side A; the others are compared with it."""
    num_rounds: int
    endpoint: str = "completions"
    """`completions` or `chat`."""
    api_key: str | None = None
    ready_timeout_s: float = 600.0

    @property
    def path(self) -> str:
        """The route of the requests."""
        return "/v1/chat/completions" if self.endpoint == "chat" else "/v1/completions"

    @property
    def settings(self) -> dict[str, Any]:
        """The fields for the result file, without commands and keys."""
        return {name: value for name, value in asdict(self).items() if name not in ("targets", "api_key")}
