"""Programs of Debian that some tests run. A test that lacks one is skipped, and says how to install it."""

import shutil
from typing import Final

import pytest

_PACKAGES: Final = {
    "cc": "gcc",
    "kubectl": "kubernetes-client",
    "nsenter": "util-linux",
    "promtool": "prometheus",
    "systemctl": "systemd",
    "systemd-analyze": "systemd",
    "unshare": "util-linux",
}
"""Program -> its package, if that has another name."""


def needs_tool(program: str) -> pytest.MarkDecorator:
    """Marks tests that run this program."""
    return pytest.mark.skipif(shutil.which(program) is None, reason=how_to_install(program))


def require_tool(program: str) -> str:
    """The program's path. Skips the test if it is not installed."""
    if (path := shutil.which(program)) is None:
        pytest.skip(how_to_install(program))
    return path


def how_to_install(program: str) -> str:
    """Why a test is skipped, and the command that lets it run."""
    return f"{program} is not installed: apt-get install {_PACKAGES.get(program, program)}"
