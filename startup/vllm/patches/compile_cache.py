"""Records whether torch.compile's caches were used in a start, and works around vLLM's failures to load them.

vLLM stores a compiled model as a file (AOT); one layer below, Inductor caches its graphs. On CPU, vLLM 0.32
writes the file but cannot load it: it calls `finalize_loading` on the compiled function, a method that only
functions of vLLM's own backend have.
"""

import contextlib
import functools
import logging
import os
import sys
from collections.abc import Mapping
from types import ModuleType
from typing import Any, Final

from envs import foreign
from startup.hooks.hook import Hook, Name, Text
from startup.imports.finder import after_import
from startup.vllm.journal import Journal

_DECORATORS: Final = "vllm.compilation.decorators"
COMPILE_CACHE: Final = Hook(
    "compile cache",
    does="reports whether the compiled model was loaded, and bypasses a cache that failed to load",
    without="the log does not say it, and a cache that fails to load fails in every start",
    needs=(
        Text((_DECORATORS,), "Directly load AOT compilation", "the message of a hit"),
        Text((_DECORATORS,), "saved AOT compiled function", "the message of a saved model"),
        Text((_DECORATORS,), "Compiling model again due to a load failure", "the message of a failure"),
        Text(("vllm.envs",), '"VLLM_USE_AOT_COMPILE"', "VLLM_USE_AOT_COMPILE"),
        Name("torch._dynamo.utils", "counters"),
    ),
)

_LOAD_COMPILED: Final = Name("torch.compiler", "load_compiled_function")
AOT_LOADING: Final = Hook(
    "loading of compiled models",
    does="adds `finalize_loading` to Inductor's functions, which vLLM calls on all",
    without="vLLM for CPU compiles the model in every start",
    needs=(
        _LOAD_COMPILED,
        Text((_DECORATORS,), r"torch\.compiler\.load_compiled_function\(", "torch.compiler.load_compiled_function()"),
        Text((_DECORATORS,), r"\._artifacts\.compiled_fn\.finalize_loading\(", "finalize_loading()"),
    ),
)

_SWITCH: Final = "VLLM_USE_AOT_COMPILE"
_OUTCOMES: Final = {
    "Directly load AOT compilation": "hit",
    "saved AOT compiled function": "saved",
    "Compiling model again due to a load failure": "failed",
}
"""Texts of vLLM's log records, and what they mean for the AOT file."""


def record_compile_cache(journal: Journal) -> None:
    """Records the caches' use in this process and its forks, and repairs the loading of AOT files."""
    logging.getLogger(_DECORATORS).addFilter(functools.partial(_record_outcome, journal))
    if AOT_LOADING.applies:
        after_import(_DECORATORS, _add_finalize_loading)


def disable_failed_cache(outcome: Mapping[str, Any]) -> str | None:
    """Disables vLLM's AOT file for this start if it could not be loaded in the last one.

    A setting of the user's own stays.

    Returns:
        A warning for the user; None if nothing was disabled.
    """
    if outcome.get("aot") != "failed" or foreign.is_set(_SWITCH):
        return None
    os.environ[_SWITCH] = "0"
    return (
        f"vLLM's cached compiled model could not be loaded in the last start ({outcome.get('reason')}): "
        f"this start uses Inductor's cache instead; set {_SWITCH}=1 to make vLLM try again"
    )


def describe(outcome: Mapping[str, Any]) -> str | None:
    """The caches' use as text; None if nothing was compiled."""
    if "aot" in outcome:
        texts = {
            "hit": "the compiled model was loaded from vLLM's cache",
            "saved": "the model was compiled and cached for the next start",
            "failed": f"the model was compiled again: vLLM's cache could not be loaded ({outcome.get('reason')})",
        }
        return texts[outcome["aot"]]
    hits, misses = outcome.get("inductor_hits", 0), outcome.get("inductor_misses", 0)
    return f"Inductor's cache had {hits} of {hits + misses} graphs" if hits or misses else None


def count_inductor() -> dict[str, int]:
    """Inductor's cache hits and misses in this process; empty if Inductor was not used."""
    utils = sys.modules.get("torch._dynamo.utils")
    counters = getattr(utils, "counters", {}).get("inductor", {})
    hits, misses = counters.get("fxgraph_cache_hit", 0), counters.get("fxgraph_cache_miss", 0)
    return {"inductor_hits": hits, "inductor_misses": misses} if hits or misses else {}


def _record_outcome(journal: Journal, record: logging.LogRecord) -> bool:
    for text, outcome in _OUTCOMES.items():
        if text in str(record.msg):
            reason = str(record.args[-1]) if outcome == "failed" and isinstance(record.args, tuple) else None
            journal.write(compile_cache={"aot": outcome, "reason": reason})
    return True


def _add_finalize_loading(decorators: ModuleType) -> None:
    """Adds an empty `finalize_loading` to Inductor's functions, which are complete once they are loaded."""
    compiler = decorators.torch.compiler
    load = _LOAD_COMPILED.get(compiler)

    @functools.wraps(load)
    def load_and_complete(*args: Any, **kwargs: Any) -> Any:
        loaded = load(*args, **kwargs)
        compiled = getattr(getattr(loaded, "_artifacts", None), "compiled_fn", None)
        if compiled is not None and not hasattr(compiled, "finalize_loading"):
            with contextlib.suppress(AttributeError, TypeError):
                compiled.finalize_loading = lambda config: None
        return loaded

    _LOAD_COMPILED.replace(compiler, load_and_complete)
