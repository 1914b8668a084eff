"""How this process began: executed (a cold start), or forked from a template process (a warm start)."""

from collections.abc import Callable
from typing import NamedTuple, NoReturn


class WarmOrigin(NamedTuple):
    """The origin of a warm start. The front process requested it. Times are in monotonic nanoseconds."""

    front_pid: int
    """Pid of the front process, which is the process that the user has started."""
    front_begin_ns: int
    request_ns: int
    """When the front process requested the fork."""
    forked_ns: int
    """When the forked process had taken over the front process's state."""
    saved_s: float
    """Seconds that the template process's imports took, which this start saves."""
    template_pid: int


warm: WarmOrigin | None = None
"""The origin of this process if its start is warm. None if the start is cold."""

cold_reason = ""
"""Why a start that could have been warm is cold. Empty if no warm start was wanted."""

start_again: Callable[..., NoReturn] | None = None
"""Ends this process and makes the front process start the server cold. None if the start is cold.

The arguments are an environment variable and its value for the new start, then words to add to its command.
"""
