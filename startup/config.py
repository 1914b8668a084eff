"""Typed configuration of one start; standard library only."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from envs.registry import LOGGING_LEVELS, env
from server.config import EngineConfig, RendererConfig, ServerConfig
from server.limits import LimitsConfig
from server.setting import check_ranges, from_variable, setting
from startup.logs.options import LogFormat, LogOptions
from startup.prefetch.options import PrefetchOptions


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """Which model to serve and where to find it."""

    model: str | None = setting(None, flag="--model", group="Model", help="The same as MODEL, which takes precedence.")
    """A folder or a hub id; None is the default model, SmolLM2-135M-Instruct."""
    tokenizer: str | None = setting(
        None, flag="--tokenizer", group="Model", help="Folder or hub id of another tokenizer."
    )
    """None takes the model's."""
    revision: str | None = setting(None, flag="--revision", group="Model", help="Branch, tag or commit on the hub.")
    download_dir: str | None = setting(
        None, flag="--download-dir", group="Model", help="Cache folder for models from the hub."
    )
    hf_token: str | None = from_variable(
        env.HF_TOKEN,
        flag="--hf-token",
        group="Model",
        syntax="optional text",
        help="Token for gated and private models; without a value, the one that `hf auth login` stored.",
    )


@dataclass(frozen=True, kw_only=True)
class StartupConfig:
    """All settings of a start with the embedded engine (`startup.embedded_start`)."""

    start_method: str = from_variable(env.VLLM_WORKER_MULTIPROC_METHOD)
    """`spawn`, `fork` or `forkserver` (envs.registry.START_METHODS): how the engine process is started."""
    engine_ready_timeout_s: float = from_variable(env.VLLM_ENGINE_READY_TIMEOUT_S)
    """How long the engine process may take to become ready."""
    logging_level: str = from_variable(
        env.VLLM_LOGGING_LEVEL,
        flag="--log-level",
        group="Logging",
        choices=LOGGING_LEVELS,
        help="Least severe level that is logged.",
    )
    log_format: LogFormat = setting(
        "text",
        flag="--log-format",
        group="Logging",
        variable=env.VCLI_LOG_FORMAT,
        help="json makes every line of every process a JSON object.",
    )
    log_config: dict[str, Any] | None = setting(
        None,
        flag="--log-config-file",
        group="Logging",
        variable=env.VLLM_LOGGING_CONFIG_PATH,
        syntax="log config",
        metavar="FILE",
        help="JSON file with a configuration of Python's logging; takes precedence over level and format.",
    )
    """Argument of `logging.config.dictConfig`."""
    startup_timeout_s: float | None = setting(
        None,
        flag="--startup-timeout",
        group="Start",
        above=0,
        help="End a start that takes longer, naming the phase and the position of every thread.",
    )
    startup_report: Path | None = setting(
        None,
        flag="--startup-report",
        group="Start",
        metavar="FILE",
        help="Write the start's timeline as JSON; `vllm-cli timeline FILE` draws it.",
    )
    startup_trace: Path | None = setting(
        None,
        flag="--startup-trace",
        group="Start",
        metavar="FILE",
        help="Write the start's timeline for Perfetto or chrome://tracing.",
    )
    model: ModelConfig
    engine: EngineConfig
    renderer: RendererConfig
    server: ServerConfig
    limits: LimitsConfig = field(default_factory=LimitsConfig)
    prefetch: PrefetchOptions = field(default_factory=PrefetchOptions)

    @property
    def logs(self) -> LogOptions:
        """How every process logs."""
        return LogOptions(level=self.logging_level, format=self.log_format, config=self.log_config)

    def __post_init__(self) -> None:
        check_ranges(self)
