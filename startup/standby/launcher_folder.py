"""Where this program's modules are, and in which folder `python -m` starts the same ones."""

from pathlib import Path
from typing import Final

LAUNCHER_FOLDER: Final = Path(__file__).resolve().parents[2]
"""The folder of all packages of this program."""


def module_folder() -> Path | None:
    """The working folder for `python -m vllm_cli`, which prefers modules that are there; None for this one.

    A source tree in which the user happens to be must not replace the installed program.
    """
    try:
        is_there = Path.cwd() == LAUNCHER_FOLDER
    except OSError:  # it was deleted
        is_there = False
    return None if is_there else Path("/")
