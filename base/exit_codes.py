"""Exit codes of this program and of the engine process."""

from typing import Final

OK: Final = 0
ENGINE_DIED: Final = 1
"""The engine process ended while the server ran, and was not started again."""
USAGE: Final = 2
START_FAILED: Final = 3
ENGINE_FAILED: Final = 4
"""An engine process failed after it had become ready. This is the exit code of the engine process."""
NO_ACCESS: Final = 5
"""`prefetch` failed, because the hub denies access to the model, or lacks the model or revision."""
NO_SPACE: Final = 6
"""`prefetch` failed, because the disk has no space for the model."""
INTERRUPTED: Final = 130
"""Ctrl-C ended the program. The code is 128 plus the number of SIGINT."""
