"""Variables of other programs, read by name: what vLLM's launcher hands on, and what it looks at.

Variables that mean something to this project are declared in `registry`.
"""

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager


def snapshot() -> dict[str, str]:
    """The whole environment, as it is now."""
    return dict(os.environ)


def text_of(name: str) -> str:
    """The value, empty where the variable is not set."""
    return os.environ.get(name, "")


def is_set(name: str) -> bool:
    """Whether the variable is there, if only as an empty text."""
    return name in os.environ


@contextmanager
def overlaid(extra: Mapping[str, str]) -> Iterator[None]:
    """Sets variables for a block, for children started there; afterwards all is as before."""
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
