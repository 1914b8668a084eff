"""The environment of a helper process that must not have secrets."""

import os
from typing import Final

_NAMES: Final = ("PATH", "HOME", "LANG", "LC_ALL", "TZ", "TMPDIR", "LD_LIBRARY_PATH", "PYTHONPATH", "PYTHONHOME")
"""Search paths of programs, libraries and modules, and the formats of times and texts."""


def restricted_environment() -> dict[str, str]:
    """The variables of `_NAMES` that are set."""
    return {name: os.environ[name] for name in _NAMES if name in os.environ}
