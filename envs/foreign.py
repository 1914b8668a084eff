"""Reads variables of other programs by name, and a few of our own variables that a warm start needs early.

`registry` also declares these few variables (VCLI_STANDBY, VCLI_ENGINE and folders), but a warm start has no
time to import `registry`. The command that runs next reads them through `registry`, and reports wrong values.
"""

import os


def text_of(name: str) -> str:
    """The value of a variable. Empty if the variable is not set."""
    return os.environ.get(name, "")


def is_set(name: str) -> bool:
    """Whether the variable is set, even if it is empty."""
    return name in os.environ


def expand_home(path: str) -> str:
    """Replaces `~` in a path, as vLLM does. `~NAME` of an unknown user stays.

    The home folder is `/` if HOME is not set and the user has no name or home folder, as in some containers.
    """
    expanded = os.path.expanduser(path)  # noqa: PTH111 - pathlib takes 5 ms to import, and raises errors
    return f"/{expanded[2:]}" if expanded == "~" or expanded.startswith("~/") else expanded
