"""Identifies the installed distributions, so that facts kept about them are used with these only."""

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
    """Each distribution's list of files, and each `.pth` file: path, time in seconds, size.

    Whole seconds, because layers of images store no more. Those of the first call count in this process: some
    imports add folders to the path, as setuptools does.
    """
    return tuple(sorted((path, *read_stamp(path).stored) for path in distribution_files(sys.path)))


def distribution_files(folders: Iterable[str]) -> Iterator[str]:
    """The files that installers write anew with each version. Not all of them write a list of files."""
    for folder, names in _site_folders(folders):
        for name in names:
            if name.endswith(_METADATA):
                yield f"{folder}/{name}/{_RECORD}"
            elif name.endswith(_PATH_FILE):
                yield f"{folder}/{name}"


def installed_folders() -> tuple[str, ...]:
    """The folders, with a slash, whose files only installers write: distributions and standard library."""
    library = os.path.dirname(os.__file__)  # noqa: PTH120
    sites = (folder for folder, _ in _site_folders(sys.path))
    return tuple(f"{folder}/" for folder in dict.fromkeys((library, *sites)))


def _site_folders(folders: Iterable[str]) -> Iterator[tuple[str, list[str]]]:
    """The folders that have distributions, with their entries; in other folders, `.pth` files are weights."""
    for folder in filter(None, dict.fromkeys(folders)):
        try:
            names = os.listdir(folder)  # noqa: PTH208
        except OSError:
            continue
        if any(name.endswith(_METADATA) for name in names):
            yield folder, names
