"""The part of the environment that a process may have which shall know no secrets."""

import os
from typing import Final

_NAMES: Final = ("PATH", "HOME", "LANG", "LC_ALL", "TZ", "TMPDIR", "LD_LIBRARY_PATH", "PYTHONPATH", "PYTHONHOME")
"""Where programs, libraries and modules are, and how times and texts are written."""


def harmless_environment() -> dict[str, str]:
    """What is set of it."""
    return {name: os.environ[name] for name in _NAMES if name in os.environ}
