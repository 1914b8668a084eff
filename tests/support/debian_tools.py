"""Debian's programs that tests run. Tests whose program is missing are skipped with a hint to install it."""

import shutil
from typing import Final

import pytest

PACKAGES: Final = {
    "cc": "gcc",
    "kubectl": "kubernetes-client",
    "nsenter": "util-linux",
    "promtool": "prometheus",
    "systemctl": "systemd",
    "systemd-analyze": "systemd",
    "unshare": "util-linux",
}
"""Program -> its Debian package, for programs whose package has another name."""


def needs_tool(program: str) -> pytest.MarkDecorator:
    """Marks tests that run this program."""
    return pytest.mark.skipif(shutil.which(program) is None, reason=how_to_install(program))


def require_tool(program: str) -> str:
    """The program's path. Skips the test if the program is not installed."""
    if (path := shutil.which(program)) is None:
        pytest.skip(how_to_install(program))
    return path


def how_to_install(program: str) -> str:
    """The reason for skipping a test: the missing program, and the command that installs it."""
    return f"{program} is not installed: apt-get install {PACKAGES.get(program, program)}"
