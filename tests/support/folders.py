"""Temporary folders."""

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def short_folder() -> Iterator[Path]:
    """A temporary folder with a path that is short enough for Unix sockets."""
    with tempfile.TemporaryDirectory(prefix="fv", dir="/tmp") as name:
        yield Path(name)
