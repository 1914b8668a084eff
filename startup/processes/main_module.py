"""Keeps multiprocessing from running the program's own script again in every process that it starts."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


@contextmanager
def without_main_module() -> Iterator[None]:
    """While open, processes are started as if there were no script, of which the engine's processes need nothing."""
    main = vars(sys.modules["__main__"])
    hidden: dict[str, Any] = {name: main.pop(name) for name in ("__file__", "__spec__") if name in main}
    main["__spec__"] = None
    try:
        yield
    finally:
        main.update(hidden)
