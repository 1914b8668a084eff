"""Places the hooks that change vLLM's modules. Each hook says in which processes (`Hook.places`)."""

from typing import Final

from startup.compiled_models import vllm_hooks
from startup.hook import Hook, Process, hooks_of
from startup.imports.finder import place
from startup.vllm import journal
from startup.vllm.patches import (
    compiler,
    compiler_keys,
    early_kernels,
    engine_idle,
    json_logs,
    kernel_overrides,
    kv_cache,
    late_imports,
    model_registry,
    process_titles,
    temp_files,
    tokenizers,
    warm_ups,
)
from startup.vllm.patches.graphs import cuda_graphs, late_graphs
from startup.vllm.serving import serving_events

PLACED_IN: Final = (
    serving_events,
    tokenizers,
    compiler_keys,
    compiler,
    early_kernels,
    vllm_hooks,
    model_registry,
    kv_cache,
    cuda_graphs,
    late_graphs,
    late_imports,
    engine_idle,
    warm_ups,
    kernel_overrides,
    json_logs,
    journal,
    temp_files,
    process_titles,
)
"""The modules with these hooks, in the order of the documentation and of the changes."""

_placed: Final[set[Hook]] = set()
"""The hooks that this process or a template, from which it was forked, has placed."""


def place_hooks(process: Process) -> None:
    """Places the hooks of this kind of process, before it imports vLLM. A template's forks place the rest."""
    for hook in hooks_of(*PLACED_IN):
        if process in hook.places and hook not in _placed:
            _placed.add(hook)
            place(hook)
