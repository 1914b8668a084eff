"""The user's home folder in paths; imported by a front process, whose start waits for it."""

import os


def expand_home(path: str) -> str:
    """The path with `~` replaced, as vLLM does; an unknown user's stays.

    The home is `/` for a user without a name, a home and HOME, as container runtimes set it.
    """
    expanded = os.path.expanduser(path)  # noqa: PTH111 - pathlib takes 5 ms to import, and raises errors
    return f"/{expanded[2:]}" if expanded == "~" or expanded.startswith("~/") else expanded
