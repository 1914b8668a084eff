"""Crashes of real vLLM: how to provoke them, and the expected digests."""

from dataclasses import dataclass, field
from typing import Any, Final, Literal

Process = Literal["APIServer", "EngineCore", "Worker"]

_NAMES: Final[dict[Process, str]] = {"APIServer": "MainProcess", "EngineCore": "EngineCore", "Worker": "VllmWorker"}
"""Process -> its name in multiprocessing."""
_CPU: Final = "vllm.v1.worker.cpu_worker:CPUWorker"
_GPU: Final = "vllm.v1.worker.gpu_worker:Worker"
_RUNNER: Final = "vllm.v1.worker.cpu_model_runner:CPUModelRunner"
_CORE: Final = "vllm.v1.engine.core:EngineCore"
_CONFIG: Final = "vllm.engine.arg_utils:EngineArgs.create_engine_config"

_API: Final = "vllm.v1.engine"
_LOADING: Final = "while it loaded the model"
_DEVICE: Final = "while it prepared the device"
_SERVING: Final = "while it served"
_MEMORY: Final = "while it measured memory"
_RESERVING: Final = "while it reserved the KV cache"
_WARM_UP: Final = "while it warmed up"
_KILLED: Final = "SIGKILL, not by the kernel's OOM killer"


@dataclass(frozen=True, kw_only=True)
class Crash:
    process: str
    """The process's name in the first line of the digest."""
    phase: str = ""
    cause: str | None = None
    """The id of the known cause. None if the cause is not known."""
    text: str
    """A text in the line about the cause."""
    at: str = ""
    """The value of CRASH_AT for `crash_plugin`."""
    arguments: tuple[str, ...] = ()
    variables: dict[str, str] = field(default_factory=dict)
    model: str = "small"
    """The model: a name of `StartFolders`, or `small`."""
    is_serving: bool = False
    """Whether the crash happens during a request, after the start."""


def _raises(
    process: Process, place: str, error: str, *, phase: str = "", cause: str | None = None, **more: Any
) -> Crash:
    """A crash by an exception in a function of vLLM."""
    text = error.partition(": ")[2]
    return Crash(process=process, phase=phase, cause=cause, text=text, at=f"{_NAMES[process]} {place} {error}", **more)


def _signal(process: Process, place: str, name: str, *, phase: str = "", **more: Any) -> Crash:
    """A crash by a signal that ends a process in a function of vLLM."""
    cause = {"SIGKILL": "killed-from-outside", "SIGILL": "illegal-instruction"}.get(name, "native-crash")
    text = _KILLED if name == "SIGKILL" else f"crashed with {name}"
    return Crash(process=process, phase=phase, cause=cause, text=text, at=f"{_NAMES[process]} {place} {name}", **more)


def _faulty(process: Process, *arguments: str, text: str, cause: str | None, phase: str = "", **more: Any) -> Crash:
    """A crash by a fault of model, flags or machine that vLLM itself finds."""
    return Crash(process=process, phase=phase, cause=cause, text=text, arguments=arguments, **more)


CRASHES: Final[dict[str, Crash]] = {
    # Exceptions, process by process and phase by phase.
    "api-config": _raises(
        "APIServer", _CONFIG, "NameError: name 'x'", phase="while it read its configuration", cause="error-in-code"
    ),
    "api-tokenizer": _raises("APIServer", f"{_API}.async_llm:InputProcessor.__init__", "ValueError: no tokenizer"),
    "engine-caches": _raises("EngineCore", f"{_CORE}._initialize_kv_caches", "ValueError: no caches"),
    "worker-device": _raises("Worker", f"{_CPU}.init_device", "ValueError: no device", phase=_DEVICE),
    "worker-load": _raises("Worker", f"{_GPU}.load_model", "ValueError: no weights here", phase=_LOADING),
    "worker-memory": _raises("Worker", f"{_CPU}.determine_available_memory", "ValueError: no memory", phase=_MEMORY),
    "worker-reserves": _raises("Worker", f"{_GPU}.initialize_from_config", "ValueError: no room", phase=_RESERVING),
    "worker-warms-up": _raises("Worker", f"{_CPU}.compile_or_warm_up_model", "ValueError: too cold", phase=_WARM_UP),
    # Signals.
    "engine-killed": _signal("EngineCore", f"{_CORE}._initialize_kv_caches", "SIGKILL"),
    "worker-device-ill": _signal("Worker", f"{_CPU}.init_device", "SIGILL", phase=_DEVICE),
    "worker-load-killed": _signal("Worker", f"{_RUNNER}.get_model", "SIGKILL", phase=_LOADING),
    "worker-load-segv": _signal("Worker", f"{_RUNNER}.load_model", "SIGSEGV", phase=_LOADING),
    "worker-exits": Crash(
        process="Worker",
        cause="process-vanished",
        text="died unexpectedly with exit code 9",
        at=f"VllmWorker {_GPU}.load_model exit 9",
    ),
    # While it serves.
    "serving-engine-killed": _signal("EngineCore", f"{_CORE}.add_request", "SIGKILL", phase=_SERVING, is_serving=True),
    "serving-worker": _raises(
        "Worker", f"{_GPU}.execute_model", "ValueError: no token", cause="error-in-code", is_serving=True
    ),
    "serving-worker-killed": _signal("Worker", f"{_GPU}.execute_model", "SIGKILL", phase=_SERVING, is_serving=True),
    # Faults that the preflight would find.
    "model-truncated": _faulty("Worker", text="", cause="weights-damaged", model="{truncated}", phase=_LOADING),
    "model-pointer": _faulty("APIServer", text="metadata", cause="weights-damaged", model="{lfs}"),
    "model-shard-missing": _faulty("Worker", text="", cause="weights-missing", model="{missing_shard}"),
    "model-more-layers": _faulty("Worker", text="", cause="weights-do-not-match", model="{more_layers}"),
    "model-no-tokenizer": _faulty("APIServer", text="", cause="tokenizer-missing", model="{no_tokenizer}"),
    "model-architecture": _faulty(
        "APIServer", text="LlamoForCausalLM", cause="architecture-unsupported", model="{unknown_architecture}"
    ),
    "flags-too-long": _faulty("APIServer", "--max-model-len", "999999", text="", cause="max-model-len-too-long"),
    "flags-adapter": _faulty(
        "Worker", "--enable-lora", "--lora-modules", "a=/missing", text="/missing", cause="lora-missing"
    ),
    "flags-template": _faulty("APIServer", "--chat-template", "/missing.jinja", text="", cause="chat-template-missing"),
    "flags-middleware": _faulty(
        "APIServer", "--middleware", "no_such.Class", text="no_such", cause="package-of-model-missing"
    ),
    "flags-blocks": _faulty("EngineCore", "--num-gpu-blocks-override", "1", text="", cause="no-room-for-kv-cache"),
}
