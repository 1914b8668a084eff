"""Imports that use the GPU, in a process that will be forked. The driver, NVML and torch are fakes."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.support.marks import needs_tool

pytestmark = [pytest.mark.thorough, needs_tool("cc")]  # compiles false libraries of a driver

HERE = Path(__file__).parent
ROOT = HERE.parents[2]
_LIBRARIES = {
    "libcuda.so.1": HERE / "false_gpu" / "false_cuda.c",
    "libnvidia-ml.so.1": HERE.parent / "vllm_arguments" / "preflight" / "false_nvml.c",
}
_TORCH = """
import ctypes, types, torch.cuda, torch.xpu
version = types.SimpleNamespace(hip=None, xpu=None)
"""
_CUDA = """
import ctypes, os
def _lazy_init():
    ctypes.CDLL("libcuda.so.1").cuInit(0)
def get_device_capability(device=None):
    _lazy_init()
    return 8, 0
def get_device_name(device=None):
    _lazy_init()
    return "H200"
def device_count():
    return int(os.environ["NUM_GPUS"])
"""
_XPU = "def _lazy_init(): pass\n"
_MODULES = {
    "asks": "import torch, os\nARCHITECTURE = [*torch.cuda.get_device_capability(), os.environ['CUTE_DSL_ARCH']]\n",
    "initializes": "import torch\nNAME = torch.cuda.get_device_name()\n",
    "needs_it": "import json.tool\ntry:\n    import initializes\nexcept Exception:\n    initializes = None\n",
    "initializes_hidden": "import ctypes\nctypes.CDLL('libcuda.so.1').cuInit(0)\nimport wave\n",
    "imports_hidden": "import initializes_hidden, json.decoder\n",
    "ignores": "import torch\ntry:\n    torch.cuda.get_device_name()\nexcept:\n    pass\n",
    "other": "",
}
_GPU = "gpu H200 GPU-{} 1000 1000 {}"


@pytest.fixture(scope="session")
def libraries(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("false_gpu")
    for name, source in _LIBRARIES.items():
        subprocess.run(
            ["cc", "-shared", "-fPIC", "-O1", "-Wl,-soname," + name, "-o", folder / name, source], check=True
        )
    return folder


@pytest.fixture
def import_in_advance(libraries: Path, tmp_path: Path) -> Callable[..., dict[str, Any]]:
    """Runs the script with these modules and GPUs of these major capabilities. Keeps the cache folder."""
    for name, code in {**_MODULES, "torch/__init__": _TORCH, "torch/cuda/__init__": _CUDA, "torch/xpu": _XPU}.items():
        (tmp_path / f"{name}.py").parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / f"{name}.py").write_text(code)

    def run(*modules: str, gpus: tuple[int, ...] = (9,)) -> dict[str, Any]:
        lines = (_GPU.format(number, major) for number, major in enumerate(gpus))
        (tmp_path / "state").write_text("\n".join(("driver 570.86", "cuda 12080", *lines)))
        changes = {
            "LD_LIBRARY_PATH": str(libraries),
            "FALSE_NVML": str(tmp_path / "state"),
            "NUM_GPUS": str(len(gpus)),
            "PYTHONPATH": f"{tmp_path}:{ROOT}",
            "VLLM_CACHE_ROOT": str(tmp_path / "cache"),
        }
        script = [sys.executable, str(HERE / "gpu_guard_script.py"), *modules]
        done = subprocess.run(script, env=os.environ | changes, capture_output=True, text=True, timeout=120)
        assert done.returncode == 0, done.stderr
        assert done.stderr == ""
        result: dict[str, Any] = json.loads(done.stdout)
        assert result["failed"] == {}
        assert result["afterwards"] == "_lazy_init", "everything is as it was"
        return result

    return run


@pytest.mark.smoke
def test_the_architecture_is_answered_without_the_driver(import_in_advance):
    found = import_in_advance("torch", "asks", gpus=(9, 9))
    assert found["architecture"] == [9, 0, "sm_90a"]
    assert (found["driver"], found["unforkable"]) == (None, None)


@pytest.mark.parametrize("module", ["asks", "initializes", "needs_it"])
def test_what_cannot_be_answered_is_left_to_the_forks(module, import_in_advance):
    """GPUs differ in architecture, a function needs more than this, or a package ignores exceptions."""
    for _ in range(2):
        found = import_in_advance("torch", module, module, "other", gpus=(9, 12))
        assert found["imported"] == ["torch", "other"]
        assert (found["driver"], found["unforkable"]) == (None, None)


@pytest.mark.parametrize(
    ("module", "culprit"), [("initializes_hidden", "initializes_hidden"), ("imports_hidden", "initializes_hidden")]
)
def test_a_driver_that_is_initialized_all_the_same_is_noticed_and_avoided_by_the_next_start(
    module, culprit, import_in_advance
):
    """The named module is the innermost one, and not a module that it imports later."""
    first = import_in_advance("torch", module, "other")
    assert first["driver"] == "CUDA"
    assert first["unforkable"].startswith(f"{culprit} has initialized CUDA while it was imported")
    assert "other" not in first["imported"], "nothing that forks would use"
    second = import_in_advance("torch", module, "other")
    assert second["imported"] == ["torch", "other"]
    assert (second["driver"], second["unforkable"]) == (None, None)


def test_a_package_that_ignores_even_that_error_is_not_believed(import_in_advance):
    """The package would continue as on a machine without a GPU, and so would its forks."""
    first = import_in_advance("torch", "ignores")
    assert "ignores calls _lazy_init() while it is imported" in first["unforkable"]
    assert import_in_advance("torch", "ignores")["unforkable"] is None


def test_other_gpus_or_packages_are_tried_again(import_in_advance, tmp_path):
    assert import_in_advance("torch", "asks", gpus=(9, 12))["imported"] == ["torch"]
    assert import_in_advance("torch", "asks", gpus=(9,))["imported"] == ["torch", "asks"]
    import_in_advance("torch", "initializes")
    (tmp_path / "initializes.py").write_text("")
    assert import_in_advance("torch", "initializes")["imported"] == ["torch"]
    (tmp_path / "fixed-1.0.dist-info").mkdir()
    (tmp_path / "fixed-1.0.dist-info" / "RECORD").write_text("initializes.py,,\n")
    assert import_in_advance("torch", "initializes")["imported"] == ["torch", "initializes"]


def test_without_a_gpu_nothing_is_changed(import_in_advance):
    found = import_in_advance("torch", "initializes", gpus=())
    assert found["imported"] == ["torch", "initializes"]
