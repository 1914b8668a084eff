"""Expands the user's home folder in paths. A front process imports it while it starts, so it stays small."""

import os


def expand_home(path: str) -> str:
    """The path with `~` replaced, as vLLM does. `~NAME` of an unknown user stays.

    The home is `/` if there is no user name, no home and no HOME, as in some containers.
    """
    expanded = os.path.expanduser(path)  # noqa: PTH111 - pathlib takes 5 ms to import, and raises errors
    return f"/{expanded[2:]}" if expanded == "~" or expanded.startswith("~/") else expanded
