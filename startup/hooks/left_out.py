"""The hooks that this process and its forks must not place, because they do not fit."""

from collections.abc import Iterable
from typing import Final

from startup.hooks.hook import Hook

_left_out: Final[set[str]] = set()


def leave_out(names: Iterable[str]) -> None:
    """From now on, `applies` is False for the hooks with these names."""
    _left_out.update(names)


def left_out() -> tuple[str, ...]:
    """The names of the hooks, in alphabetical order."""
    return tuple(sorted(_left_out))


def applies(hook: Hook) -> bool:
    """Whether the hook may be placed."""
    return hook.name not in _left_out
