"""Marks: tests that run a program of Debian, and values of a parameter that only slower tiers run with."""

import shutil
from collections.abc import Iterable
from typing import Any, Final

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
    return pytest.mark.skipif(shutil.which(program) is None, reason=how_to_install(program))


def require_tool(program: str) -> str:
    """The program's path. Skips the test if the program is not installed."""
    if (path := shutil.which(program)) is None:
        pytest.skip(how_to_install(program))
    return path


def how_to_install(program: str) -> str:
    """The reason for skipping a test: the missing program, and the command that installs it."""
    return f"{program} is not installed: apt-get install {PACKAGES.get(program, program)}"


def thorough_but_for(names: Iterable[Any], *fast: Any) -> list[Any]:
    """The names or other values as parameters of a test. `make test` runs it only with those in `fast`."""
    return [name if name in fast else pytest.param(name, marks=pytest.mark.thorough) for name in names]


def slow_but_for(names: Iterable[str], *others: str) -> list[Any]:
    """The names as parameters of a test. `.ci/run` runs the test only with the names in `others`."""
    return [name if name in others else pytest.param(name, marks=pytest.mark.slow) for name in names]
