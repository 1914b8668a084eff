"""A start in an empty home loads compiled models and kernels from a shared location or a baked folder."""

import os
import signal
import subprocess
import time
from pathlib import Path

import pytest

from tests.gpu_stub.gpu_router import PREFIX, needs_root
from tests.gpu_stub.gpu_server import EAGER, MODEL, PYTHON, GpuServer, gpu_variables

_WORDS = EAGER[1:]
_KERNELS = "*.cubin"


_OTHER_GPU = {"STUB_NAME": "NVIDIA A100-SXM4-80GB"}


@pytest.fixture(scope="module")
def location(tmp_path_factory):
    """A location to which a first start on each of two kinds of GPU has written its compiled models."""
    location = tmp_path_factory.mktemp("location")
    for number, environment in enumerate(({}, _OTHER_GPU), 1):
        home = tmp_path_factory.mktemp("first")
        words = (*_WORDS, "--compile-cache", str(location))
        with GpuServer("ours", *words, folder=home, environment=environment) as server:
            server.wait_ready()
            server.wait(lambda expected=number: len([*location.glob("*/*.zip")]) == expected)
            assert server.terminate(signal.SIGTERM) == 0
        assert list(home.rglob(_KERNELS))
    return location


@pytest.fixture(scope="module")
def baked(tmp_path_factory):
    """The folder that `bake` has written. `bake` needs the devices of a GPU to start a model."""
    home, folder = tmp_path_factory.mktemp("image"), tmp_path_factory.mktemp("baked") / "baked"
    command = [*PREFIX, PYTHON, "-m", "vllm_cli", "bake", MODEL, "--engine", "vllm", *_WORDS, "--output", folder]
    done = subprocess.run(command, env=gpu_variables(home), cwd=home, capture_output=True, text=True, timeout=1200)
    assert done.returncode == 0, done.stderr
    return folder


@pytest.mark.parametrize("environment", [{}, _OTHER_GPU], ids=["first kind", "other kind"])
def test_an_empty_home_loads_what_its_kind_of_gpu_has_shared(location, tmp_path, environment):
    _assert_loads(tmp_path, "--compile-cache", str(location), environment=environment)


@needs_root
def test_an_empty_home_loads_what_the_image_has(baked, tmp_path):
    _assert_loads(tmp_path, environment={"VCLI_BAKED": os.fspath(baked)})


def _assert_loads(home: Path, *words: str, environment: dict[str, str] | None = None) -> None:
    began_s = time.time()
    with GpuServer("ours", *_WORDS, *words, folder=home, environment=environment) as server:
        assert server.wait_ready().generate()
        server.wait_logged("compiled model: loaded")
        assert server.terminate(signal.SIGTERM) == 0
    assert [path for path in home.rglob(_KERNELS) if path.stat().st_mtime >= began_s] == []
