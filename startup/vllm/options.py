"""Settings of a start of vLLM that are ours; everything else is vLLM's and travels as it was written."""

from dataclasses import dataclass, field
from pathlib import Path

from startup.logs.options import LogFormat
from startup.prefetch.options import PrefetchOptions


@dataclass(frozen=True, kw_only=True)
class VllmOptions:
    """What `startup.vllm.start` needs."""

    words: tuple[str, ...]
    """The command line for `vllm serve`, untouched and in order."""
    start_method: str | None = None
    """What VLLM_WORKER_MULTIPROC_METHOD says; None where it is not set."""
    prefetch: PrefetchOptions = field(default_factory=PrefetchOptions)
    startup_timeout_s: float | None = None
    """How long the whole start may take; None does not bound it."""
    startup_report: Path | None = None
    startup_trace: Path | None = None
    log_format: LogFormat = "text"
    is_preflight_only: bool = False
    is_json: bool = False
