"""Finds the file systems whose files are in memory (proc(5), mountinfo)."""

import os
from pathlib import Path

_MEMORY_TYPES = ("tmpfs", "ramfs", "devtmpfs", "hugetlbfs")
_MOUNTS = Path("/proc/self/mountinfo")


def memory_devices() -> set[int]:
    """Their device numbers as in stat(2); empty if the system does not list its mounts."""
    try:
        mounts = _MOUNTS.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return set()
    return {_device(line) for line in mounts if _file_system(line) in _MEMORY_TYPES}


def _file_system(line: str) -> str:
    return line.partition(" - ")[2].partition(" ")[0]


def _device(line: str) -> int:
    major, _, minor = line.split(" ")[2].partition(":")
    return os.makedev(int(major), int(minor))
