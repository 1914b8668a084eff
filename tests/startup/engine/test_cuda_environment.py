"""A GPU is expected by device and settings, and only the engine initialises CUDA."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from startup.engine import torch_environment as cuda
from startup.engine.torch_environment import detect_gpus_without_cuda, expects_gpu

_NVML = "PYTORCH_NVML_BASED_CUDA_CHECK"
_DRIVER_LOADED = "file=libcuda.so.1 [0];  dynamically loaded by"
_LEAN = "from startup.imports.heavy import import_engine; import_engine()"


@pytest.fixture
def gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A device's file, and a torch that is built for GPUs."""
    device = tmp_path / "device"
    device.touch()
    monkeypatch.setattr(cuda, "_GPU_DEVICES", (device,))
    monkeypatch.setattr(cuda, "_is_torch_built_for_gpus", lambda: True)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    return device


@pytest.mark.parametrize(
    ("visible", "is_expected"), [(None, True), ("0", True), ("GPU-1a2b", True), ("", False), ("-1", False)]
)
def test_a_gpu_is_expected_unless_it_is_hidden(
    gpu: Path, visible: str | None, is_expected: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert expects_gpu() is is_expected


def test_no_gpu_is_expected_without_its_device(gpu: Path) -> None:
    gpu.unlink()
    assert not expects_gpu()


def test_no_gpu_is_expected_of_a_torch_without_cuda(gpu: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    monkeypatch.undo()
    monkeypatch.setattr(cuda, "_GPU_DEVICES", (gpu,))
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert expects_gpu() is (torch.version.cuda is not None)


def test_torch_detects_gpus_without_cuda_unless_the_user_has_set_the_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(_NVML, raising=False)
    detect_gpus_without_cuda()
    assert os.environ[_NVML] == "1"
    monkeypatch.setenv(_NVML, "0")
    detect_gpus_without_cuda()
    assert os.environ[_NVML] == "0"


def test_the_forkservers_imports_do_not_initialise_cuda(tmp_path: Path) -> None:
    import torch

    if torch.version.cuda is None:
        pytest.skip("this torch is built without CUDA")
    if any(device.exists() for device in cuda._GPU_DEVICES):
        pytest.skip("cuBLAS has loaded the driver already; tests/cuda has a test for machines with a GPU")
    assert not _initialises_cuda(_LEAN, tmp_path / "lean")
    assert _initialises_cuda("import torch; torch.cuda.is_available()", tmp_path / "available")


def _initialises_cuda(code: str, log: Path) -> bool:
    """Whether CUDA's runtime loads the driver, as in its first call, by the dynamic loader's log."""
    environment = {**os.environ, "LD_DEBUG": "files", "LD_DEBUG_OUTPUT": str(log), "PYTHONPATH": str(Path.cwd())}
    subprocess.run([sys.executable, "-c", code], env=environment, check=True, timeout=240)
    texts = [path.read_text(errors="replace") for path in log.parent.glob(f"{log.name}.*")]
    lines = [line for text in texts for line in text.splitlines()]
    assert lines, "the loader has logged nothing"
    return any(_DRIVER_LOADED in line and "libcudart" in line for line in lines)
