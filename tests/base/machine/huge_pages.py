"""Whether this system has pages of 2 MiB, and how many bytes of this process are in such pages."""

import platform
from pathlib import Path

import pytest

_SETTING = Path("/sys/kernel/mm/transparent_hugepage/enabled")
_VERSION = tuple(int(number) for number in platform.release().split(".")[:2])

needs_huge_pages = pytest.mark.skipif(
    _VERSION < (6, 1) or not _SETTING.exists() or "[never]" in _SETTING.read_text(encoding="ascii"),
    reason="this kernel moves no memory into huge pages on request",
)


def count_huge_bytes() -> int:
    """Bytes of this process's own memory in huge pages."""
    lines = Path("/proc/self/smaps_rollup").read_text(encoding="ascii").splitlines()
    return sum(int(line.split()[1]) << 10 for line in lines if line.startswith("AnonHugePages:"))
