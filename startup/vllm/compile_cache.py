"""torch.compile's caches: whether they were of use to a start, and what to do in the next where they were not.

vLLM keeps a compiled model as a file (AOT) and, below that, Inductor keeps its graphs. On CPU, vLLM 0.32 writes the
file but cannot read it: it asks what was compiled to finish its loading, which only functions of its own backend can.
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
from startup.vllm.import_hooks import after_import
from startup.vllm.journal import Journal

_DECORATORS: Final = "vllm.compilation.decorators"
_SWITCH: Final = "VLLM_USE_AOT_COMPILE"
_OUTCOMES: Final = {
    "Directly load AOT compilation": "hit",
    "saved AOT compiled function": "saved",
    "Compiling model again due to a load failure": "failed",
}
"""What vLLM's log says, and what that means for its file."""


def record_compile_cache(journal: Journal) -> None:
    """From now on, in this process and those forked from it, what becomes of the caches is noted; files load again."""
    logging.getLogger(_DECORATORS).addFilter(functools.partial(_note, journal))
    after_import(_DECORATORS, _let_loading_finish)


def disable_failed_cache(outcome: Mapping[str, Any]) -> str | None:
    """Switches off what failed in the last start, for this one; returns what to tell the user, if anything was done.

    A setting of the user's own stays.
    """
    if outcome.get("aot") != "failed" or foreign.is_set(_SWITCH):
        return None
    os.environ[_SWITCH] = "0"
    return (
        f"the compiled model that vLLM kept could not be loaded in the last start ({outcome.get('reason')}): "
        f"this one uses Inductor's cache instead; set {_SWITCH}=1 to have vLLM try again"
    )


def describe(outcome: Mapping[str, Any]) -> str | None:
    """Whether the caches were of use, in words; None where nothing was compiled."""
    if "aot" in outcome:
        words = {
            "hit": "the compiled model came from vLLM's cache",
            "saved": "the model was compiled, and is kept for the next start",
            "failed": f"the model was compiled again: vLLM's cache could not be loaded ({outcome.get('reason')})",
        }
        return words[outcome["aot"]]
    hits, misses = outcome.get("inductor_hits", 0), outcome.get("inductor_misses", 0)
    return f"Inductor's cache had {hits} of {hits + misses} graphs" if hits or misses else None


def count_inductor() -> dict[str, int]:
    """How many graphs Inductor found in its cache in this process, and how many it compiled; empty without it."""
    utils = sys.modules.get("torch._dynamo.utils")
    counters = getattr(utils, "counters", {}).get("inductor", {})
    hits, misses = counters.get("fxgraph_cache_hit", 0), counters.get("fxgraph_cache_miss", 0)
    return {"inductor_hits": hits, "inductor_misses": misses} if hits or misses else {}


def _note(journal: Journal, record: logging.LogRecord) -> bool:
    for text, outcome in _OUTCOMES.items():
        if text in str(record.msg):
            reason = str(record.args[-1]) if outcome == "failed" and isinstance(record.args, tuple) else None
            journal.write(compile_cache={"aot": outcome, "reason": reason})
    return True


def _let_loading_finish(decorators: ModuleType) -> None:
    """Inductor's own functions are ready as they are loaded; vLLM asks them for a last step all the same."""
    compiler = decorators.torch.compiler
    load = compiler.load_compiled_function

    @functools.wraps(load)
    def load_and_complete(*args: Any, **kwargs: Any) -> Any:
        loaded = load(*args, **kwargs)
        compiled = getattr(getattr(loaded, "_artifacts", None), "compiled_fn", None)
        if compiled is not None and not hasattr(compiled, "finalize_loading"):
            with contextlib.suppress(AttributeError, TypeError):
                compiled.finalize_loading = lambda config: None
        return loaded

    compiler.load_compiled_function = load_and_complete
