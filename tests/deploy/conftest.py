"""A fixture for a container's root. Linters are installed only for the tests that need them."""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.deploy.container_root import ContainerRoot
from tests.support.folders import short_folder


def installed(requirement: str, venv: Path) -> Path:
    """Installs a package in a virtual environment. Returns the folder with the package's programs."""
    subprocess.run([sys.executable, "-m", "venv", str(venv)], check=True, timeout=600)
    pip = [str(venv / "bin" / "python"), "-m", "pip", "install", "--quiet", "--no-compile"]
    subprocess.run([*pip, requirement], check=True, timeout=1800)
    return venv / "bin"


@pytest.fixture
def root(tiny_llama: Path) -> Iterator[ContainerRoot]:
    """A container's root with the tiny model."""
    with short_folder() as folder:
        yield ContainerRoot(folder / "root", tiny_llama)
