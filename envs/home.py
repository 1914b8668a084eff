"""Expands the user's home folder in paths. Every front process imports this module, so it is small."""

import os


def expand_home(path: str) -> str:
    """Replaces `~` in a path, as vLLM does. `~NAME` of an unknown user stays.

    The home folder is `/` if HOME is not set and the user has no name or home folder, as in some containers.
    """
    expanded = os.path.expanduser(path)  # noqa: PTH111 - pathlib takes 5 ms to import, and raises errors
    return f"/{expanded[2:]}" if expanded == "~" or expanded.startswith("~/") else expanded
