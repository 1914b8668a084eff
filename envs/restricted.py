"""The part of the environment that a process without access to secrets may have."""

import os
from typing import Final

_NAMES: Final = ("PATH", "HOME", "LANG", "LC_ALL", "TZ", "TMPDIR", "LD_LIBRARY_PATH", "PYTHONPATH", "PYTHONHOME")
"""Search paths of programs, libraries and modules, and the formats of times and texts."""


def restricted_environment() -> dict[str, str]:
    """Those of the variables that are set."""
    return {name: os.environ[name] for name in _NAMES if name in os.environ}
