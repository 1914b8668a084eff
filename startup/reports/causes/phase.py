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

_FUNCTIONS: Final = {
    "parse_args": COMMAND_LINE,
    "make_arg_parser": COMMAND_LINE,
    "from_cli_args": CONFIGURATION,
    "create_model_config": CONFIGURATION,
    "create_engine_config": CONFIGURATION,
    "setup_server": PORT,
    "create_server_socket": PORT,
    "init_device": DEVICE,
    "init_worker_distributed_environment": CONNECTING,
    "init_distributed_environment": CONNECTING,
    "initialize_ray_cluster": RAY,
    "load_model": LOADING,
    "get_model": LOADING,
    "determine_available_memory": MEMORY,
    "determine_num_available_blocks": MEMORY,
    "profile_run": MEMORY,
    "initialize_cache": KV_CACHE,
    "get_kv_cache_configs": KV_CACHE,
    "check_enough_kv_cache_memory": KV_CACHE,
    "_check_enough_kv_cache_memory": KV_CACHE,
    "initialize_from_config": RESERVING,
    "compile_or_warm_up_model": WARM_UP,
    "capture_model": GRAPHS,
    "codegen_and_compile": COMPILING,
    "renderer_from_config": TOKENIZER,
    "init_tokenizer_from_configs": TOKENIZER,
    "get_tokenizer": TOKENIZER,
    "execute_model": SERVING,
    "execute_dummy_batch": SERVING,
}
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
