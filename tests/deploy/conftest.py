"""A fixture for a container's root. Linters are installed only for the tests that need them."""

import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.deploy.container_root import ContainerRoot
from tests.deploy.manifests import Document
from tests.support.folders import short_folder


def installed(requirement: str, venv: Path) -> Path:
    """Installs a package in a virtual environment. Returns the folder with the package's programs."""
    subprocess.run([sys.executable, "-m", "venv", str(venv)], check=True, timeout=600)
    pip = [str(venv / "bin" / "python"), "-m", "pip", "install", "--quiet", "--no-compile"]
    subprocess.run([*pip, requirement], check=True, timeout=1800)
    return venv / "bin"


@pytest.fixture(scope="session")
def validate(tmp_path_factory: pytest.TempPathFactory) -> Callable[[Iterable[Document]], Any]:
    """Compares documents with the schemas of Kubernetes. Returns the exit code and the output."""
    folder = tmp_path_factory.mktemp("validate")

    def validate(documents: Iterable[Document]) -> subprocess.CompletedProcess[str]:
        program = folder / "venv" / "bin" / "kubernetes-validate"
        if not program.exists():
            installed("kubernetes-validate==1.37.0", folder / "venv")
        file = folder / "manifests.yaml"
        file.write_text(yaml.safe_dump_all(documents))
        command = [str(program), "--strict", "--kubernetes-version", "1.33", str(file)]
        return subprocess.run(command, capture_output=True, text=True, timeout=600)

    return validate


@pytest.fixture
def root(tiny_llama: Path) -> Iterator[ContainerRoot]:
    """A container's root with the tiny model."""
    with short_folder() as folder:
        yield ContainerRoot(folder / "root", tiny_llama)
