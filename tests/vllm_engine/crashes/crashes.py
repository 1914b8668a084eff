"""Crashes of real vLLM: how each is provoked, and what the digest must tell."""

from dataclasses import dataclass, field
from typing import Final, Literal

Process = Literal["API server", "EngineCore", "Worker"]

_NAMES: Final[dict[Process, str]] = {"API server": "MainProcess", "EngineCore": "EngineCore", "Worker": "VllmWorker"}
"""multiprocessing's names."""
_CPU: Final = "vllm.v1.worker.cpu_worker:CPUWorker"
_GPU: Final = "vllm.v1.worker.gpu_worker:Worker"
_RUNNER: Final = "vllm.v1.worker.cpu_model_runner:CPUModelRunner"
_CORE: Final = "vllm.v1.engine.core:EngineCore"
_CONFIG: Final = "vllm.engine.arg_utils:EngineArgs.create_engine_config"

_LOADING: Final = "while it loaded the model"
_DEVICE: Final = "while it prepared the device"
_SERVING: Final = "while it served"
_KILLED: Final = "SIGKILL, not by the kernel's OOM killer"


@dataclass(frozen=True, kw_only=True)
class Crash:
    """One crash."""

    process: str
    """How the digest's first line names the process."""
    phase: str = ""
    cause: str | None = None
    """The id of the known cause; None if there is none."""
    text: str
    """In the line of the cause."""
    at: str = ""
    """For `crash_plugin`."""
    words: tuple[str, ...] = ()
    variables: dict[str, str] = field(default_factory=dict)
    model: str = "small"
    """A name of `StartFolders`, or the small model."""
    is_serving: bool = False
    """Whether it happens with a request, after the start."""
    num_workers: int = 1


def _raises(process: Process, place: str, error: str, *, phase: str = "", cause: str | None = None) -> Crash:
    return Crash(process=process, phase=phase, cause=cause, text=error, at=f"{_NAMES[process]} {place} {error}")


def _signal(process: Process, place: str, name: str, *, phase: str = "") -> Crash:
    cause = {"SIGKILL": "killed-from-outside", "SIGILL": "illegal-instruction"}.get(name, "native-crash")
    text = _KILLED if name == "SIGKILL" else f"crashed with {name}"
    return Crash(process=process, phase=phase, cause=cause, text=text, at=f"{_NAMES[process]} {place} {name}")


CRASHES: Final[dict[str, Crash]] = {
    "api-config": _raises("API server", _CONFIG, "NameError: a test", phase="while it read its configuration"),
    "engine-caches": _raises("EngineCore", f"{_CORE}._initialize_kv_caches", "NameError: a test"),
    "engine-caches-killed": _signal("EngineCore", f"{_CORE}._initialize_kv_caches", "SIGKILL"),
    "engine-caches-segv": _signal("EngineCore", f"{_CORE}._initialize_kv_caches", "SIGSEGV"),
    "worker-device": _raises("Worker", f"{_CPU}.init_device", "NameError: a test", phase=_DEVICE),
    "worker-device-killed": _signal("Worker", f"{_CPU}.init_device", "SIGKILL"),
    "worker-load": _raises("Worker", f"{_GPU}.load_model", "KeyError: a", phase=_LOADING),
    "worker-load-killed": _signal("Worker", f"{_GPU}.load_model", "SIGKILL"),
    "worker-load-aborts": _signal("Worker", f"{_RUNNER}.load_model", "SIGABRT", phase=_LOADING),
}
