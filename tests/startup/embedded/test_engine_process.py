"""The engine process: its start method, its start in a thread, its end, and its variables of torch."""

import json
import multiprocessing
import os
import subprocess
import sys
from pathlib import Path

import pytest

from base.errors import EngineStartError
from envs.registry import START_METHODS
from server.terms.config import EngineConfig, ModelFiles
from startup.embedded.engine_process import EngineStarter
from startup.files.model.checkpoint_folder import modeling_module
from startup.imports import torch_environment
from startup.imports.torch_environment import expects_gpu, set_torch_variables
from startup.logs.options import LogOptions
from startup.processes.group_signals import GROUP_SIGNALS
from startup.reports.crash.output_record import OutputRecord
from tests.support.cli import python_output
from tests.support.waiting import disturbing


def _run(model: Path, method: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, Path(__file__).with_name("engine_script.py"), model, method, *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=240)


@pytest.mark.thorough
def test_the_forkserver_imports_the_models_class_before_it_forks(model_path):
    run = _run(model_path, "forkserver", "--modules")
    assert json.loads(run.stdout) == ["torch", "server.engine.build", "transformers.models.llama.modeling_llama"]


@pytest.mark.thorough
@pytest.mark.parametrize("config", [None, "{", "[]", "{}", '{"model_type": 3}', '{"model_type": "../x"}'])
def test_an_unusable_config_has_no_model_class(tmp_path, config):
    if config is not None:
        (tmp_path / "config.json").write_text(config)
    assert modeling_module(tmp_path) is None


@pytest.mark.thorough
@pytest.mark.parametrize("method", START_METHODS)
def test_processes_ignore_group_signals_from_their_start_on(tmp_path, method):
    run = _run(tmp_path, method, "--statuses")
    assert run.returncode == 0, run.stderr
    *new, parent = (disturbing(status, GROUP_SIGNALS) for status in json.loads(run.stdout))
    assert new == [set()] * (2 if method == "forkserver" else 1)
    assert parent == disturbing(Path("/proc/thread-self/status").read_text(), GROUP_SIGNALS)  # unchanged: see nohup(1)


@pytest.mark.thorough
def test_an_engine_that_cannot_read_its_requests_exits(model_path):
    run = _run(model_path, "spawn", "--garble")
    assert json.loads(run.stdout) == {"exitcode": 4}
    assert "the engine failed" in run.stderr


def _without_files() -> ModelFiles:
    raise OSError("no files")


@pytest.mark.parametrize("is_abandoned", [False, True])
def test_the_switch_interval_is_restored_after_a_start_in_a_thread(is_abandoned, tmp_path):
    before = sys.getswitchinterval()
    context, record = multiprocessing.get_context("forkserver"), OutputRecord(tmp_path)
    starter = EngineStarter(context, _without_files, EngineConfig(), LogOptions(level="INFO"), record)
    assert sys.getswitchinterval() < before
    if not is_abandoned:
        with pytest.raises(EngineStartError, match="no files"):
            starter.wait_started()
    starter.close()
    assert sys.getswitchinterval() == before


@pytest.mark.parametrize(("before", "method"), [*((None, method) for method in START_METHODS), ("spawn", "forkserver")])
def test_method_is_in_force_afterwards_even_if_a_library_has_set_another_one(before, method):
    out = python_output(
        "import multiprocessing\n"
        f"multiprocessing.set_start_method({before!r}, force=True)\n"
        "from startup.embedded.engine_process import use_start_method\n"
        f"context = use_start_method({method!r})\n"
        "print(multiprocessing.get_start_method(), context.get_start_method())\n"
    )
    assert out.split() == [method, method]


@pytest.fixture
def gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A fake device file, and a fake torch that is built for GPUs."""
    device = tmp_path / "device"
    device.touch()
    monkeypatch.setattr(torch_environment, "_GPU_DEVICES", (device,))
    monkeypatch.setattr(torch_environment, "_is_torch_built_for_gpus", lambda: True)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    return device


@pytest.mark.parametrize(
    ("visible", "has_device", "is_expected"),
    [
        *((visible, True, True) for visible in (None, "0", "GPU-1a2b")),
        *((visible, True, False) for visible in ("", "-1")),
        (None, False, False),
    ],
)
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


@pytest.mark.parametrize(
    ("name", "replaced"),
    [
        *((name, name) for name in _DEFAULTS),
        ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT"),
        ("DNNL_PRIMITIVE_CACHE_CAPACITY", "ONEDNN_PRIMITIVE_CACHE_CAPACITY"),
    ],
)
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
