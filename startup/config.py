"""Typed configuration of one start; standard library only."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from server.config import ConfigError, EngineConfig, RendererConfig, ServerConfig
from server.limits import LimitsConfig
from startup.logs.options import LogFormat, LogOptions
from startup.prefetch.options import PrefetchOptions


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """Which model to serve and where to find it."""

    model: str | None = None
    """A folder or a hub id; None is the default model, SmolLM2-135M-Instruct."""
    tokenizer: str | None = None
    """A folder or a hub id; None takes the model's."""
    revision: str | None = None
    download_dir: str | None = None
    hf_token: str | None = None


@dataclass(frozen=True, kw_only=True)
class StartupConfig:
    """Everything `startup.launch.launch` needs."""

    start_method: str
    """`spawn`, `fork` or `forkserver` (envs.registry.START_METHODS): how the engine process is started."""
    engine_ready_timeout_s: float
    """How long the engine process may take to become ready."""
    logging_level: str
    log_format: LogFormat = "text"
    """`json` makes every line of every process a JSON object."""
    log_config: dict[str, Any] | None = None
    """A configuration for `logging.config.dictConfig`, which wins over level and format."""
    model: ModelConfig
    engine: EngineConfig
    renderer: RendererConfig
    server: ServerConfig
    limits: LimitsConfig = field(default_factory=LimitsConfig)
    prefetch: PrefetchOptions = field(default_factory=PrefetchOptions)
    startup_timeout_s: float | None = None
    """How long the whole start may take; None does not bound it."""
    startup_report: Path | None = None
    """Where to write the timeline as JSON."""
    startup_trace: Path | None = None
    """Where to write the timeline for Perfetto or chrome://tracing."""

    @property
    def logs(self) -> LogOptions:
        """How every process logs."""
        return LogOptions(level=self.logging_level, format=self.log_format, config=self.log_config)

    def __post_init__(self) -> None:
        if self.startup_timeout_s is not None and self.startup_timeout_s <= 0:
            raise ConfigError("--startup-timeout", self.startup_timeout_s, "above 0")
