"""Runs the shipped images and manifests with podman and runc. Needs root and packages of Debian."""

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.containers.podman import ROOT, STORE, build, build_base, build_vllm, podman
from tests.support.debian_tools import PACKAGES

_PROGRAMS = ("podman", "runc", "catatonit", "debootstrap", "kubectl", "haproxy", "podman-compose")
_MISSING = [PACKAGES.get(program, program) for program in _PROGRAMS if shutil.which(program) is None]
_REASON = f"needs root, and: apt-get install --no-install-recommends {' '.join(_MISSING)}"


def pytest_addoption(parser: pytest.Parser) -> None:
    """Adds the options of rollouts."""
    parser.addoption("--rollouts", type=int, default=10, help="how often all replicas are replaced")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Marks all tests in this folder. They are skipped without root or a package."""
    for item in items:
        if item.path.parent == Path(__file__).parent:
            item.add_marker(pytest.mark.slow)
            item.add_marker(pytest.mark.containers)
            item.add_marker(pytest.mark.timeout(3600))
            item.add_marker(pytest.mark.skipif(bool(_MISSING) or os.geteuid() != 0, reason=_REASON))


@pytest.fixture(scope="session", autouse=True)
def _store() -> Iterator[None]:
    """Removes what a stopped run has left, and everything but images at the end."""
    if not _MISSING:
        _remove_all()
        build_base()
    yield
    if not _MISSING:
        _remove_all()


def _remove_all() -> None:
    for kind in ("pod", "container", "volume", "secret"):
        words = ("rm", "--all") if kind == "secret" else ("rm", "--all", "--force")
        podman(kind, *words)
    podman("image", "prune", "--force")


@pytest.fixture(scope="session")
def image(_store: None) -> str:
    """The image of Dockerfile."""
    return build("vllm-cli", context=ROOT)


@pytest.fixture(scope="session")
def vllm_image(_store: None, tmp_path_factory: pytest.TempPathFactory) -> str:
    """vLLM's image for CPU with the two lines of docs/fleet.md."""
    return build_vllm(tmp_path_factory.mktemp("vllm-image"))


@pytest.fixture(scope="session")
def model(model_path: Path) -> Path:
    """A copy of the default model that all users may read."""
    copy = STORE / "model"
    shutil.copytree(model_path, copy, dirs_exist_ok=True, copy_function=shutil.copyfile)
    return copy
