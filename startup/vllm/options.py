"""The launcher's own settings for a start of vLLM; all other words are passed to vLLM unchanged."""

from dataclasses import dataclass, field
from pathlib import Path

from startup.config import IdleWarmMode, PreflightMode, StandbyMode
from startup.logs.options import LogFormat
from startup.prefetch.options import PrefetchOptions


@dataclass(frozen=True, kw_only=True)
class VllmOptions:
    """The settings of one start."""

    words: tuple[str, ...]
    """The command line for `vllm serve`, unchanged and in order."""
    start_method: str = "forkserver"
    """`forkserver` replaces the `spawn` that vLLM would use; the other methods are left to vLLM."""
    standby: StandbyMode = "auto"
    idle_stop_s: float | None = None
    """With it, this process is the front (`startup.on_request.front`), which starts vLLM."""
    idle_warm: IdleWarmMode = "auto"
    preflight: PreflightMode = "auto"
    prefetch: PrefetchOptions = field(default_factory=PrefetchOptions)
    startup_timeout_s: float | None = None
    """The longest time that the start may take; None for no limit."""
    download_timeout_s: float | None = None
    """The longest time that the download of the model may take; None for no limit."""
    startup_report: Path | None = None
    startup_trace: Path | None = None
    log_format: LogFormat = "text"
    is_preflight_only: bool = False
    is_json: bool = False
