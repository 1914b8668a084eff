"""Expands the user's home folder in paths. Every front process imports this module, so it is small."""

import os


def expand_home(path: str) -> str:
    """Replaces `~` in a path, as vLLM does. `~NAME` of an unknown user is not replaced.

    The home folder is `/` if the user has no name and no home folder and HOME is not set, as in some
    containers.
    """
    expanded = os.path.expanduser(path)  # noqa: PTH111 - pathlib takes 5 ms to import, and raises errors
    return f"/{expanded[2:]}" if expanded == "~" or expanded.startswith("~/") else expanded
