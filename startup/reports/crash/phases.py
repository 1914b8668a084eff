"""The phase of a start of vLLM in which a function runs. Digests name phases by these texts."""

from collections.abc import Iterable
from typing import Final

SERVING: Final = "while it served"

_FUNCTIONS: Final = {
    "while it read its command line": ("parse_args", "make_arg_parser"),
    "while it read its configuration": ("from_cli_args", "create_model_config", "create_engine_config"),
    "while it opened its port": ("setup_server", "create_server_socket"),
    "while it prepared the device": ("init_device",),
    "while it connected to the other workers": ("init_worker_distributed_environment", "init_distributed_environment"),
    "while it looked for GPUs in the Ray cluster": ("initialize_ray_cluster",),
    "while it loaded the model": ("load_model", "get_model"),
    "while it measured memory": ("determine_available_memory", "determine_num_available_blocks", "profile_run"),
    "while it sized the KV cache": (
        "initialize_cache",
        "get_kv_cache_configs",
        "check_enough_kv_cache_memory",
        "_check_enough_kv_cache_memory",
    ),
    "while it reserved the KV cache": ("initialize_from_config",),
    "while it warmed up": ("compile_or_warm_up_model",),
    "while it captured CUDA graphs": ("capture_model",),
    "while it compiled the model": ("codegen_and_compile",),
    "while it loaded the tokenizer": ("renderer_from_config", "init_tokenizer_from_configs", "get_tokenizer"),
    SERVING: ("execute_model", "execute_dummy_batch"),
}
_PHASES: Final = {function: phase for phase, functions in _FUNCTIONS.items() for function in functions}


def phase_of_functions(functions: Iterable[str]) -> str:
    """The phase of a traceback with these functions, outermost first. Empty if unknown.

    An empty name separates the tracebacks of a chain. The first traceback with a phase counts.
    """
    phase = ""
    for function in functions:
        if not function and phase:
            break
        # The model is also computed to measure memory, to compile and to warm up.
        known = _PHASES.get(function, "")
        if known and not (known == SERVING and phase):
            phase = known
    return phase
