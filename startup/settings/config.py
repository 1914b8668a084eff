"""The typed settings of one start. This module imports no third-party package."""

from dataclasses import dataclass, field
from functools import cache
from math import inf
from pathlib import Path
from typing import Any, ClassVar, Literal

from base.errors import ConfigError
from base.setting import Group, Role, check_ranges, from_variable, setting, walk_settings
from envs.registry import LOGGING_LEVELS, env
from server.terms.config import EngineConfig, RendererConfig
from server.terms.limits import LimitsConfig
from server.terms.server_config import ServerConfig
from startup.logs.options import LogFormat, LogOptions

DEFAULT_MODEL_ID = "HuggingFaceTB/SmolLM2-135M-Instruct"
"""The model if neither MODEL nor --model is given."""

StandbyMode = Literal["auto", "off", "require"]
PreflightMode = Literal["auto", "warn", "off"]
CudaGraphs = Literal["auto", "before-ready", "after-ready"]
PrefetchMode = Literal["auto", "on", "off"]


@dataclass(frozen=True)
class CompileCacheOption:
    """The value of --compile-cache."""

    location: str | None = None
    is_required: bool = False

    @classmethod
    def of(cls, text: str) -> "CompileCacheOption":
        """Parses `LOCATION`, `require`, or `LOCATION,require`. Raises ConfigError for others."""
        parts = [part for part in text.split(",") if part]
        places = [part for part in parts if part != "require"]
        if len(places) > 1:
            raise ConfigError("LOCATION", text, "one location, `require`, or LOCATION,require")
        if any("://" in place and not place.lower().startswith("file://") for place in places):
            raise ConfigError("LOCATION", text, "a folder, such as one of a mounted bucket")
        return cls(places[0] if places else None, len(places) < len(parts))


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """Which model to serve and where to find it."""

    help_group: ClassVar[Group] = "Model"

    model: str | None = setting(None, "--model", "The model, if the argument MODEL is not given.")
    """A folder or a hub id. None stands for `DEFAULT_MODEL_ID`."""
    tokenizer: str | None = setting(
        None, "--tokenizer", "Folder or hub id of the tokenizer, by default the model's own."
    )
    revision: str | None = setting(None, "--revision", "Branch, tag or commit of the model on the hub.")
    download_dir: str | None = setting(
        None, "--download-dir", "Cache folder for models from the hub, by default HF_HUB_CACHE."
    )
    hf_token: str | None = from_variable(
        env.HF_TOKEN,
        "--hf-token",
        "Token for gated and private models, by default that of `hf auth login`.",
        syntax="optional text",
    )


@dataclass(frozen=True, kw_only=True)
class SeveralModelsConfig:
    """Settings for several models behind one port (`router`). They have no effect with a single model."""

    help_group: ClassVar[Group] = "Several models"
    role: ClassVar[Role] = "router"

    models: str | None = setting(
        None,
        "--models",
        "Serve the models of this YAML file, or of `serve A B`, behind one port.",
        metavar="FILE",
    )
    memory_budget_bytes: int | None = setting(
        None,
        "--memory-budget",
        "The most memory of all models, such as 48GiB, by default the machine's.",
        syntax="size",
        above=0,
    )
    max_running: int | None = setting(
        None,
        "--max-running",
        "The most models that run at once, by default as many as fit into memory.",
        metavar="N",
        minimum=1,
    )
    on_swap: Literal["stop", "sleep"] = setting(
        "stop",
        "--on-swap",
        "How a model makes room for another one. Only vLLM on a GPU can sleep.",
        choices=("stop", "sleep"),
    )
    max_wait_s: float = setting(
        10.0,
        "--max-wait",
        "How long a request whose model has no room waits for other models to become idle. With --restart, how long "
        "a request waits for its model.",
        above=0,
    )
    max_waiting: int = setting(
        256,
        "--max-waiting",
        "The most requests that wait for one model. Further requests get 429.",
        metavar="N",
        minimum=1,
    )

    def __post_init__(self) -> None:
        check_ranges(self)


@dataclass(frozen=True, kw_only=True)
class StartOptions:
    """The settings of a start with either engine."""

    help_group: ClassVar[Group] = "Start"

    is_preflight_only: bool = setting(
        False,
        "--preflight-only",
        "Only check what could make the start fail, and exit with 0, 2 or 3, as the start would.",
        role="router",
    )
    is_json: bool = setting(False, "--json", "With --preflight-only: report as JSON.", role="router")
    log_format: LogFormat = setting(
        "text",
        "--log-format",
        "Format of log lines. text-utc adds the year and the time zone. json makes every line of every process a "
        "JSON object.",
        group="Logging",
        role="program",
        variable=env.VCLI_LOG_FORMAT,
    )
    standby: StandbyMode = setting(
        "auto",
        "--standby",
        "Whether to fork the server from a running `vllm-cli standby`: if possible (auto), never (off), or fail if "
        "impossible (require). Unless off, a router has its own standby.",
        variable=env.VCLI_STANDBY,
    )
    """`startup.standby.front_process` reads this flag before the command line is parsed."""
    idle_stop_s: float | None = setting(
        None,
        "--idle-stop",
        "Stop the model when no request came for this long (90s, 10m, 1h). The next request starts it again.",
        role="router",
        variable=env.VCLI_IDLE_STOP,
        syntax="duration",
        metavar="DURATION",
    )
    idle_sleep_s: float | None = setting(
        None,
        "--idle-sleep",
        "When no request came for this long, vLLM frees the GPU's memory. The next request wakes the model. Models "
        "that do not run in vLLM on a GPU are stopped instead.",
        role="router",
        variable=env.VCLI_IDLE_SLEEP,
        syntax="duration",
        metavar="DURATION",
    )
    restart_limit: int | None = setting(
        None,
        "--restart",
        "Start the model again when its engine or server has ended by itself. After N failures in a row (5), exit with "
        "code 1.",
        role="router",
        variable=env.VCLI_RESTART,
        syntax="restart policy",
        metavar="on-failure[:N]",
    )
    """The model is not started again after this many failures in a row. None: it is never started again."""
    preflight: PreflightMode = setting(
        "auto",
        "--preflight",
        "Check before the start for faults that would make it fail: report all and exit (auto), only log them "
        "(warn), or do not check (off).",
        role="both",
        variable=env.VCLI_PREFLIGHT,
    )
    listen_when_ready: bool = setting(
        False,
        "--listen-when-ready",
        "Refuse connections until the server is ready, for `tcpSocket` probes. This flag has no effect with --uds or "
        "systemd's socket.",
        variable=env.VCLI_LISTEN_WHEN_READY,
    )
    startup_timeout_s: float | None = setting(
        None,
        "--startup-timeout",
        "End a start that takes longer, and log the phase and each thread's position.",
        role="program",
        above=0,
    )
    engine_watchdog_timeout_s: float = from_variable(
        env.VCLI_ENGINE_WATCHDOG_TIMEOUT,
        "--engine-watchdog-timeout",
        "End the server when its engine is silent for this time, and log where each thread is. 0 turns this off.",
        minimum=0,
        below=inf,
    )
    cuda_graphs: CudaGraphs = setting(
        "auto",
        "--cuda-graphs",
        "Whether vLLM captures its CUDA graphs before it is ready, or afterwards, between the steps of requests.",
        variable=env.VCLI_CUDA_GRAPHS,
    )
    download_timeout_s: float | None = setting(
        None,
        "--download-timeout",
        "End a start whose download takes longer.",
        above=0,
    )
    compile_cache: CompileCacheOption | None = setting(
        None,
        "--compile-cache",
        "Share vLLM's compiled models in a folder. With `require`, alone or after LOCATION and a comma, a start that "
        "would compile fails.",
        role="run",
        variable=env.VCLI_COMPILE_CACHE,
        syntax="compile cache",
        metavar="LOCATION",
    )
    startup_report: Path | None = setting(
        None,
        "--startup-report",
        "Write the start's phases and spans as JSON.",
        role="run",
        metavar="FILE",
    )
    prefetch: PrefetchMode = setting(
        "auto",
        "--prefetch",
        "Read the weights into the page cache during the imports (auto: only if this can make the start faster).",
    )
    """`on` reads all weights that fit into memory, even if only a few fit. `off` reads nothing."""

    @property
    def is_behind_router(self) -> bool:
        """Whether this process is a router, which starts the model's server as another process."""
        return self.idle_stop_s is not None or self.idle_sleep_s is not None or self.restart_limit is not None


@dataclass(frozen=True, kw_only=True)
class StartupConfig(StartOptions):
    """All settings of a start with the embedded engine (`startup.embedded.start`)."""

    start_method: str = from_variable(env.VLLM_WORKER_MULTIPROC_METHOD)
    """How the engine process is started: `spawn`, `fork` or `forkserver` (`envs.registry.START_METHODS`)."""
    engine_ready_timeout_s: float = from_variable(env.VLLM_ENGINE_READY_TIMEOUT_S)
    logging_level: str = from_variable(
        env.VLLM_LOGGING_LEVEL,
        "--log-level",
        "Least severe level that is logged.",
        group="Logging",
        role="program",
        choices=LOGGING_LEVELS,
    )
    log_config: dict[str, Any] | None = setting(
        None,
        "--log-config-file",
        "JSON file with a configuration of Python's logging, which overrides level and format.",
        group="Logging",
        role="program",
        variable=env.VLLM_LOGGING_CONFIG_PATH,
        syntax="log config",
        metavar="FILE",
    )
    several: SeveralModelsConfig = field(default_factory=SeveralModelsConfig)
    model: ModelConfig
    engine: EngineConfig
    renderer: RendererConfig
    server: ServerConfig
    limits: LimitsConfig = field(default_factory=LimitsConfig)

    @property
    def logs(self) -> LogOptions:
        return LogOptions(level=self.logging_level, format=self.log_format, config=self.log_config)

    def __post_init__(self) -> None:
        check_ranges(self)


@cache
def flags_with_role(*roles: Role) -> frozenset[str]:
    """Returns the flags of settings with one of these roles. vLLM's flags with these names mean the same."""
    fields = (each.field.metadata for each in walk_settings(StartupConfig) if each.role in roles)
    return frozenset(metadata["flag"] for metadata in fields if "flag" in metadata)
