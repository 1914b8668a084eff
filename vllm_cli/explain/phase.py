"""Finds the phase of a start in the messages of a log. The core's `phases.py` has those of functions."""

from typing import Final

from vllm_cli.explain.table import LISTS

KV_CACHE: Final = "while it sized the KV cache"
BANNER: Final = "█  version "
"""Text in the first lines of a start. vLLM up to 0.13 writes `OLD_BANNER` instead."""
OLD_BANNER: Final = "vLLM API server version"
KV_CACHE_SIZE: Final = "GPU KV cache size"
FATAL_ERROR: Final = "EngineCore encountered a fatal error"
"""vLLM's message about an engine that fails after its start."""
_PHASES: Final = {text: f"while it {phase}" for phase, texts in LISTS["messages of phases"].items() for text in texts}
"""Text of a message -> the phase that begins with it."""


def phase_of_message(text: str) -> str:
    """The phase that begins with this message. Empty if no phase begins."""
    return next((phase for part, phase in _PHASES.items() if part in text), "")
