"""Identifies the installed distributions, so that cached facts about them are used with these only."""

import os
import sys
from collections.abc import Iterable, Iterator
from functools import cache
from typing import Final

from base.machine.file_stamps import read_stamp

_METADATA: Final = ".dist-info"
_RECORD: Final = "RECORD"
_PATH_FILE: Final = ".pth"


@cache
def distribution_stamps() -> tuple[tuple[str, int, int], ...]:
    """A stamp (path, time in seconds, size) of each distribution's list of files, and of each `.pth` file.

    The time has whole seconds, because image layers store no more. This process keeps the result of its first
    call: some imports, such as setuptools, add folders to the path.
    """
    return tuple(sorted((path, *read_stamp(path).stored) for path in distribution_files(sys.path)))


def distribution_files(folders: Iterable[str]) -> Iterator[str]:
    """The files that installers write anew with each version. Some installers write no list of files."""
    for folder, names in _site_folders(folders):
        for name in names:
            if name.endswith(_METADATA):
                yield f"{folder}/{name}/{_RECORD}"
            elif name.endswith(_PATH_FILE):
                yield f"{folder}/{name}"


def installed_folders() -> tuple[str, ...]:
    """The folders, with a slash, in which only installers write: site-packages and standard library."""
    library = os.path.dirname(os.__file__)  # noqa: PTH120
    sites = (folder for folder, _ in _site_folders(sys.path))
    return tuple(f"{folder}/" for folder in dict.fromkeys((library, *sites)))


def _site_folders(folders: Iterable[str]) -> Iterator[tuple[str, list[str]]]:
    """The folders with distributions, and their entries. In other folders, `.pth` files hold weights."""
    for folder in filter(None, dict.fromkeys(folders)):
        try:
            names = os.listdir(folder)  # noqa: PTH208
        except OSError:
            continue
        if any(name.endswith(_METADATA) for name in names):
            yield folder, names
