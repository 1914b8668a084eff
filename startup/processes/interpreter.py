"""The Python that runs this program: its name, and whether its release and build are tested."""

import sys
from typing import Final

NEWEST_TESTED: Final = (3, 14)


def name() -> str:
    """The interpreter's name for messages, such as `Python 3.13.5 (free-threaded)`."""
    return f"Python {sys.version.split()[0]}{' (free-threaded)' if is_free_threaded() else ''}"


def is_tested() -> bool:
    """Whether forking was tested with this release."""
    return sys.version_info[:2] <= NEWEST_TESTED


def is_free_threaded() -> bool:
    """Whether this build of Python has no interpreter lock."""
    return "t" in sys.abiflags
