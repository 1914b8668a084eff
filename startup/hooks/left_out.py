"""The hooks that are not placed: they do not fit, or VCLI_LEAVE_OUT names them."""

from collections.abc import Iterable
from typing import Final

from envs.registry import env
from startup.hooks.hook import Hook

_left_out: Final[set[str]] = set()


def leave_out(names: Iterable[str]) -> None:
    """From now on, `applies` is False for the hooks with these names, in this process and its forks."""
    _left_out.update(names)


def left_out() -> tuple[str, ...]:
    """The names of the hooks, in alphabetical order."""
    return tuple(sorted(_left_out))


def applies(hook: Hook) -> bool:
    """Whether the hook may be placed."""
    return hook.name not in _left_out and hook.name not in env.VCLI_LEAVE_OUT.get()
