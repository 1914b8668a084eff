"""Finds the phase of a start in the messages of a log and in the functions of a traceback."""

from collections.abc import Iterable
from typing import Final

COMMAND_LINE: Final = "while it read its command line"
CONFIGURATION: Final = "while it read its configuration"
PORT: Final = "while it opened its port"
DEVICE: Final = "while it prepared the device"
CONNECTING: Final = "while it connected to the other workers"
RAY: Final = "while it looked for GPUs in the Ray cluster"
LOADING: Final = "while it loaded the model"
MEMORY: Final = "while it measured memory"
KV_CACHE: Final = "while it sized the KV cache"
COMPILING: Final = "while it compiled the model"
WARM_UP: Final = "while it warmed up"
GRAPHS: Final = "while it captured CUDA graphs"
TOKENIZER: Final = "while it loaded the tokenizer"
ENGINE: Final = "while it set up the engine"
RESERVING: Final = "while it reserved the KV cache"
SERVING: Final = "while it served"

COMPUTING: Final = (MEMORY, COMPILING, WARM_UP, GRAPHS, SERVING)
"""The phases in which vLLM runs the model."""

BANNER: Final = "█  version "
"""Text in the first lines of a start. vLLM up to 0.13 writes `OLD_BANNER` instead."""
OLD_BANNER: Final = "vLLM API server version"
LAST_PHASE: Final = "its last phase was "
"""Beginning of a message about a process that has ended. The name of one of vLLM's spans follows."""
KV_CACHE_SIZE: Final = "GPU KV cache size"
FATAL_ERROR: Final = "EngineCore encountered a fatal error"
"""vLLM's message about an engine that fails after its start."""
_MESSAGES: Final = (
    (f"{LAST_PHASE}init_device", DEVICE),
    (f"{LAST_PHASE}load", LOADING),
    (f"{LAST_PHASE}initialize_model", LOADING),
    (f"{LAST_PHASE}determine_available_memory", MEMORY),
    (f"{LAST_PHASE}allocate_kv_cache", RESERVING),
    (f"{LAST_PHASE}warmup", WARM_UP),
    (f"{LAST_PHASE}compile_or_warm_up", WARM_UP),
    (f"{LAST_PHASE}compile_graph", COMPILING),
    (f"{LAST_PHASE}inductor_compilation", COMPILING),
    (f"{LAST_PHASE}capture_model", GRAPHS),
    (LAST_PHASE, ENGINE),
    (OLD_BANNER, CONFIGURATION),
    (BANNER, CONFIGURATION),
    ("Initializing a V1 LLM engine", ENGINE),
    ("Initializing a V0 LLM engine", ENGINE),
    ("Initializing an LLM engine", ENGINE),
    ("Starting to load model", LOADING),
    ("Loading safetensors checkpoint shards", LOADING),
    ("Using cache directory", COMPILING),
    ("Dynamo bytecode transform", COMPILING),
    ("Available KV cache memory", KV_CACHE),
    ("# GPU blocks", KV_CACHE),
    (KV_CACHE_SIZE, WARM_UP),
    ("Capturing CUDA graph", GRAPHS),
    ("Application startup complete", SERVING),
    ("Uvicorn running on", SERVING),
    ("server is listening on", SERVING),
    (FATAL_ERROR, SERVING),
)
"""Pairs of a text in a log message and the phase that begins with this message."""

_BY_PHASE: Final = {
    COMMAND_LINE: ("parse_args", "make_arg_parser"),
    CONFIGURATION: ("from_cli_args", "create_model_config", "create_engine_config"),
    PORT: ("setup_server", "create_server_socket"),
    DEVICE: ("init_device",),
    CONNECTING: ("init_worker_distributed_environment", "init_distributed_environment"),
    RAY: ("initialize_ray_cluster",),
    LOADING: ("load_model", "get_model"),
    MEMORY: ("determine_available_memory", "determine_num_available_blocks", "profile_run"),
    KV_CACHE: (
        "initialize_cache",
        "get_kv_cache_configs",
        "check_enough_kv_cache_memory",
        "_check_enough_kv_cache_memory",
    ),
    RESERVING: ("initialize_from_config",),
    WARM_UP: ("compile_or_warm_up_model",),
    GRAPHS: ("capture_model",),
    COMPILING: ("codegen_and_compile",),
    TOKENIZER: ("renderer_from_config", "init_tokenizer_from_configs", "get_tokenizer"),
    SERVING: ("execute_model", "execute_dummy_batch"),
}
_FUNCTIONS: Final = {name: phase for phase, names in _BY_PHASE.items() for name in names}
"""Name of a function -> the phase in which it runs. In a traceback, the innermost function counts."""


def phase_of_message(text: str) -> str:
    """The phase that begins with this message. Empty if no phase begins."""
    return next((phase for part, phase in _MESSAGES if part in text), "")


def phase_of_functions(functions: Iterable[str]) -> str:
    """The phase of a traceback with these functions, outermost first. Empty if unknown.

    An empty name separates the tracebacks of a chain. The first traceback with a phase counts.
    """
    phase = ""
    for function in functions:
        if not function and phase:
            break
        # The model is also computed to measure memory, to compile and to warm up.
        known = _FUNCTIONS.get(function, "")
        if known and not (known == SERVING and phase):
            phase = known
    return phase
