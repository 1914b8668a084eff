"""torch's variables depend on whether device and settings expect a GPU. Only the engine initialises CUDA."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from startup.imports import torch_environment
from startup.imports.torch_environment import expects_gpu, set_torch_variables


@pytest.fixture
def gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A fake device file, and a fake torch that is built for GPUs."""
    device = tmp_path / "device"
    device.touch()
    monkeypatch.setattr(torch_environment, "_GPU_DEVICES", (device,))
    monkeypatch.setattr(torch_environment, "_is_torch_built_for_gpus", lambda: True)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    return device


@pytest.mark.parametrize(("visible", "has_device", "is_expected"), [
    *((visible, True, True) for visible in (None, "0", "GPU-1a2b")),
    *((visible, True, False) for visible in ("", "-1")),
    (None, False, False),
])  # fmt: skip
def test_a_gpu_is_expected_unless_it_is_hidden_or_has_no_device(gpu, visible, has_device, is_expected, monkeypatch):
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    if not has_device:
        gpu.unlink()
    assert expects_gpu() is is_expected


def test_no_gpu_is_expected_of_a_torch_without_cuda(gpu, monkeypatch):
    import torch

    monkeypatch.undo()
    monkeypatch.setattr(torch_environment, "_GPU_DEVICES", (gpu,))
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert expects_gpu() is (torch.version.cuda is not None)


_DEFAULTS = {
    "GOMP_SPINCOUNT": "10000",
    "LRU_CACHE_CAPACITY": "128",
    "ONEDNN_PRIMITIVE_CACHE_CAPACITY": "128",
    "PYTORCH_NVML_BASED_CUDA_CHECK": "1",
}


@pytest.mark.parametrize(("name", "replaced"), [
    *((name, name) for name in _DEFAULTS),
    ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT"),
    ("DNNL_PRIMITIVE_CACHE_CAPACITY", "ONEDNN_PRIMITIVE_CACHE_CAPACITY"),
])  # fmt: skip
def test_variables_are_set_for_children_unless_the_user_has_set_them(name, replaced, monkeypatch):
    for other in (*_DEFAULTS, "OMP_WAIT_POLICY", "DNNL_PRIMITIVE_CACHE_CAPACITY"):
        monkeypatch.delenv(other, raising=False)
    monkeypatch.setenv(name, "5")
    set_torch_variables()
    now = {name: os.environ.get(name) for name in _DEFAULTS}
    assert now == _DEFAULTS | {replaced: "5" if name == replaced else None}


def test_the_forkservers_imports_do_not_initialise_cuda(tmp_path):
    import torch

    if torch.version.cuda is None:
        pytest.skip("this torch is built without CUDA")
    if any(device.exists() for device in torch_environment._GPU_DEVICES):
        pytest.skip("cuBLAS has loaded the driver already; tests/cuda has a test for machines with a GPU")
    lean = "from startup.imports.heavy import import_engine; import_engine()"
    assert not _initialises_cuda(lean, tmp_path / "lean")
    assert _initialises_cuda("import torch; torch.cuda.is_available()", tmp_path / "available")


def _initialises_cuda(code: str, log: Path) -> bool:
    """Whether the code makes CUDA's runtime load the driver, by the log of the dynamic loader."""
    environment = {**os.environ, "LD_DEBUG": "files", "LD_DEBUG_OUTPUT": str(log), "PYTHONPATH": str(Path.cwd())}
    subprocess.run([sys.executable, "-c", code], env=environment, check=True, timeout=240)
    texts = [path.read_text(errors="replace") for path in log.parent.glob(f"{log.name}.*")]
    lines = [line for text in texts for line in text.splitlines()]
    assert lines, "the loader has logged nothing"
    return any("file=libcuda.so.1 [0];  dynamically loaded by" in line and "libcudart" in line for line in lines)
