"""Runs the shipped images and manifests with podman and runc. Needs root and packages of Debian."""

import fcntl
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.containers.podman import STORE, WITH_VLLM_CLI, build, build_base, build_vllm_images, podman, variables
from tests.support.marks import PACKAGES
from tests.support.peer_vllm import PYTHON

_PROGRAMS = ("podman", "runc", "catatonit", "debootstrap", "kubectl", "haproxy", "podman-compose")
_MISSING = [PACKAGES.get(program, program) for program in _PROGRAMS if shutil.which(program) is None]
_REASON = f"needs root, and: apt-get install --no-install-recommends {' '.join(_MISSING)}"


def pytest_addoption(parser: pytest.Parser) -> None:
    """Adds the options of this folder."""
    parser.addoption("--rollouts", type=int, help="how often all replicas are replaced")
    parser.addoption("--built", action="store_true", help="use the images of the last run")
    parser.addoption("--rate", type=float, help="requests a second during a rollout")


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
    """Removes everything but images, before and after all tests. Runs take turns."""
    if _MISSING or os.geteuid() != 0:
        yield
        return
    variables()
    with (STORE / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        _remove_all()
        build_base()
        yield
        _remove_all()


def _remove_all() -> None:
    """Also removes what killed builds have left, which podman calls external: gigabytes each."""
    podman("pod", "rm", "--all", "--force")
    for container in podman("ps", "--all", "--external", "--quiet").stdout.split():
        podman("rm", "--force", "--ignore", container)
    podman("volume", "rm", "--all", "--force")
    podman("secret", "rm", "--all")


@pytest.fixture(scope="session")
def image(_store: None, request: pytest.FixtureRequest) -> str:
    """The image of Dockerfile. The name of its first stage keeps this stage's layers for the next build."""
    if not request.config.getoption("--built", False):
        build("vllm-cli-build", "--target=build")
        build("vllm-cli")
        podman("image", "prune", "--force")
    return "vllm-cli"


@pytest.fixture(scope="session")
def model(model_path: Path) -> Path:
    """A copy of the default model that all users may read."""
    copy = STORE / "model"
    shutil.copytree(model_path, copy, dirs_exist_ok=True, copy_function=shutil.copyfile)
    return copy


@pytest.fixture
def mounted(model: Path) -> str:
    """The option that mounts the default model, read-only."""
    return f"--volume={model}:/model:ro"


@pytest.fixture(scope="session")
def vllm_image(_store: None, request: pytest.FixtureRequest) -> str:
    """The image that deploy/docker/vllm.Dockerfile makes of vLLM's."""
    if not PYTHON.exists():
        pytest.skip("`make peers` has not installed vLLM")
    if not request.config.getoption("--built", False):
        build_vllm_images()
    return WITH_VLLM_CLI
