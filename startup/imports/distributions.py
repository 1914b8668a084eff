"""What identifies the installed distributions, so that what is kept of them is used with these only."""

import os
import sys
from collections.abc import Iterator
from functools import cache
from typing import Final

from server.machine.file_stamps import read_stamp

_METADATA: Final = ".dist-info"
_RECORD: Final = "RECORD"
_PATH_FILE: Final = ".pth"


@cache
def distribution_stamps() -> tuple[tuple[str, int, int], ...]:
    """Each distribution's list of files, and each `.pth` file: path, time in seconds, size.

    Whole seconds, because layers of images store no more. Those of the first call count in this process: some
    imports add folders to the path, as setuptools does.
    """
    return tuple(sorted(_stamps()))


def installed_folders() -> tuple[str, ...]:
    """The folders, with a slash, whose files only installers write: distributions and standard library."""
    library = os.path.dirname(os.__file__)  # noqa: PTH120
    return tuple(f"{folder}/" for folder in dict.fromkeys((library, *filter(_has_distributions, sys.path))))


def _has_distributions(folder: str) -> bool:
    try:
        return any(name.endswith(_METADATA) for name in os.listdir(folder))  # noqa: PTH208
    except OSError:
        return False


def _stamps() -> Iterator[tuple[str, int, int]]:
    for folder in dict.fromkeys(sys.path):
        try:
            names = os.listdir(folder or os.curdir)  # noqa: PTH208
        except OSError:
            continue
        for name in names:
            if name.endswith((_METADATA, _PATH_FILE)):
                path = f"{folder}/{name}/{_RECORD}" if name.endswith(_METADATA) else f"{folder}/{name}"
                yield path, *read_stamp(path).stored  # that of a missing file if the installer writes no list
