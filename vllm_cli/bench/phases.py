"""The phases of a start, from exec to the first token."""

from typing import Final

PHASES: Final = (
    "imports",
    "configuration",
    "engine process",
    "workers",
    "weights",
    "compile and warm-up",
    "CUDA graphs",
    "server",
    "first token",
)
"""In order of time."""
