"""The phase of a start in which something happened, from the log's messages and the frames of a traceback."""

from collections.abc import Iterable
from typing import Final

SERVING: Final = "while it served"

_MESSAGES: Final = (
    ("vLLM API server version", "while it read its configuration"),
    ("Initializing a V1 LLM engine", "while it set up the engine"),
    ("Initializing a V0 LLM engine", "while it set up the engine"),
    ("Initializing an LLM engine", "while it set up the engine"),
    ("Starting to load model", "while it loaded the model"),
    ("Loading safetensors checkpoint shards", "while it loaded the model"),
    ("Using cache directory", "while it compiled the model"),
    ("Dynamo bytecode transform", "while it compiled the model"),
    ("Available KV cache memory", "while it sized the KV cache"),
    ("# GPU blocks", "while it sized the KV cache"),
    ("GPU KV cache size", "while it warmed up"),
    ("Capturing CUDA graph", "while it captured CUDA graphs"),
    ("Application startup complete", SERVING),
    ("Uvicorn running on", SERVING),
)
"""Text of a message -> what the process did from then on."""

_FUNCTIONS: Final = {
    "parse_args": "while it read its command line",
    "make_arg_parser": "while it read its command line",
    "create_model_config": "while it read its configuration",
    "create_engine_config": "while it read its configuration",
    "setup_server": "while it opened its port",
    "create_server_socket": "while it opened its port",
    "init_device": "while it prepared the device",
    "init_worker_distributed_environment": "while it connected to the other workers",
    "init_distributed_environment": "while it connected to the other workers",
    "initialize_ray_cluster": "while it looked for GPUs in the Ray cluster",
    "load_model": "while it loaded the model",
    "get_model": "while it loaded the model",
    "determine_available_memory": "while it measured memory",
    "determine_num_available_blocks": "while it measured memory",
    "profile_run": "while it measured memory",
    "initialize_cache": "while it sized the KV cache",
    "get_kv_cache_configs": "while it sized the KV cache",
    "check_enough_kv_cache_memory": "while it sized the KV cache",
    "_check_enough_kv_cache_memory": "while it sized the KV cache",
    "initialize_from_config": "while it reserved the KV cache",
    "compile_or_warm_up_model": "while it warmed up",
    "capture_model": "while it captured CUDA graphs",
    "codegen_and_compile": "while it compiled the model",
    "init_tokenizer_from_configs": "while it loaded the tokenizer",
    "get_tokenizer": "while it loaded the tokenizer",
    "execute_model": SERVING,
    "execute_dummy_batch": SERVING,
}
"""Function in a traceback -> what the process did; the innermost one counts."""


PHASE_TEXTS: Final = tuple(text for text, _ in _MESSAGES)
"""What a line contains that begins a phase."""


def phase_of_message(text: str) -> str:
    """The phase that a message begins; empty if none."""
    return next((phase for part, phase in _MESSAGES if part in text), "")


def phase_of_functions(functions: Iterable[str]) -> str:
    """The phase of a traceback with these functions, outermost first; empty if unknown.

    The empty name stands between the tracebacks of a chain; the first one that tells counts.
    """
    phase = ""
    for function in functions:
        if not function and phase:
            break
        # The model is also executed to measure memory, to compile and to warm up.
        known = _FUNCTIONS.get(function, "")
        if known and not (known == SERVING and phase):
            phase = known
    return phase
