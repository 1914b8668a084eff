"""Variables of other programs, read by name, which the launcher of vLLM passes on or checks.

Variables that this program itself uses are declared in `registry`.
"""

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager


def snapshot() -> dict[str, str]:
    """A copy of the whole environment."""
    return dict(os.environ)


def text_of(name: str) -> str:
    """The value, empty if the variable is not set."""
    return os.environ.get(name, "")


def is_set(name: str) -> bool:
    """Whether the variable exists, even if it is empty."""
    return name in os.environ


@contextmanager
def overlaid(extra: Mapping[str, str]) -> Iterator[None]:
    """Sets variables for a block and the processes started in it, then restores the former values."""
    before = {name: os.environ.get(name) for name in extra}
    os.environ.update(extra)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
