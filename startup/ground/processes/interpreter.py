"""What is known of the Python that runs this: which releases are tested, and which build."""

import sys
from typing import Final

NEWEST_TESTED: Final = (3, 14)


def name() -> str:
    """As people call it."""
    return f"Python {sys.version.split()[0]}{' (free-threaded)' if is_free_threaded() else ''}"


def is_tested() -> bool:
    """Whether forks of this release are known to work."""
    return sys.version_info[:2] <= NEWEST_TESTED


def is_free_threaded() -> bool:
    """Whether this is the build without the interpreter lock."""
    return "t" in sys.abiflags
