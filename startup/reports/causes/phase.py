"""Finds the phase of a start in the messages of a log and in the functions of a traceback."""

from collections.abc import Iterable
from functools import cache
from typing import Final

KV_CACHE: Final = "while it sized the KV cache"
SERVING: Final = "while it served"

BANNER: Final = "█  version "
"""Text in the first lines of a start. vLLM up to 0.13 writes `OLD_BANNER` instead."""
OLD_BANNER: Final = "vLLM API server version"
LAST_PHASE: Final = "its last phase was "
"""Beginning of a message about a process that has ended. The name of one of vLLM's spans follows."""
KV_CACHE_SIZE: Final = "GPU KV cache size"
FATAL_ERROR: Final = "EngineCore encountered a fatal error"
"""vLLM's message about an engine that fails after its start."""


def phase_of_message(text: str) -> str:
    """The phase that begins with this message. Empty if no phase begins."""
    return next((phase for part, phase in _phases("messages of phases").items() if part in text), "")


def phase_of_functions(functions: Iterable[str]) -> str:
    """The phase of a traceback with these functions, outermost first. Empty if unknown.

    An empty name separates the tracebacks of a chain. The first traceback with a phase counts.
    """
    by_function, phase = _phases("functions of phases"), ""
    for function in functions:
        if not function and phase:
            break
        # The model is also computed to measure memory, to compile and to warm up.
        known = by_function.get(function, "")
        if known and not (known == SERVING and phase):
            phase = known
    return phase


@cache
def _phases(name: str) -> dict[str, str]:
    """Each text of this list -> its phase."""
    from startup.reports.causes.table import LISTS  # noqa: PLC0415 - not read in each start

    return {text: f"while it {phase}" for phase, texts in LISTS[name].items() for text in texts}
