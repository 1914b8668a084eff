"""How this process began: executed (a cold start) or forked from a template process (a warm start)."""

from collections.abc import Callable
from typing import NamedTuple, NoReturn


class WarmOrigin(NamedTuple):
    """A warm start; times in monotonic nanoseconds."""

    front_pid: int
    """The process that the user started."""
    front_begin_ns: int
    """When the kernel started it."""
    request_ns: int
    """When it requested the fork."""
    forked_ns: int
    """When the forked process had taken over the state of the process that the user started."""
    saved_s: float
    """How long the imports took that the template process has done before."""
    template_pid: int


warm: WarmOrigin | None = None
"""None for a cold start."""

cold_reason = ""
"""Why a start that might have been warm is cold; empty if no warm start was wanted."""

start_again: Callable[..., NoReturn] | None = None
"""In a warm start: ends this process and has the front process start the server cold.

It takes a variable, its value, and words that are added to the command.
"""
