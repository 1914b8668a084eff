"""The devices that vLLM needs. A fake libnvidia-ml.so replaces the driver's library."""

import os
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import TypeAlias

import pytest

from base.machine import nvml
from base.machine.memory import MemoryState
from base.machine.nvml import read_gpus
from startup.session.preflight.report import Finding
from startup.vllm_words import installed
from startup.vllm_words.installed import InstalledVllm, TorchBuild
from startup.vllm_words.preflight import devices
from startup.vllm_words.preflight.devices import device_findings
from startup.vllm_words.preflight.model import ModelOnDisk
from tests.startup.vllm_words.preflight.conftest import CheckStart
from tests.support.debian_tools import needs_tool

pytestmark = needs_tool("cc")  # compiles a false libnvidia-ml.so

GIB = 1 << 30
H200 = f"gpu H200 GPU-{{}} {140 * GIB} {{}}"

SetGpus: TypeAlias = Callable[..., None]


@pytest.fixture(scope="session")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("nvml") / "libnvidia-ml.so.1"
    source = Path(__file__).with_name("false_nvml.c")
    subprocess.run(["cc", "-shared", "-fPIC", "-O1", "-o", path, source], check=True)
    return path


@pytest.fixture
def set_gpus(library: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> SetGpus:
    """A function that sets the GPUs of the fake library by lines. torch is built for CUDA 12.8."""
    state = tmp_path / "state"
    monkeypatch.setenv("FALSE_NVML", str(state))
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr(nvml, "_LIBRARIES", (str(library),))
    for module in (devices, installed):
        monkeypatch.setattr(module, "read_torch_build", lambda: TorchBuild((12, 8)))

    def write(*lines: str, driver: str = "570.86", cuda: int = 12080) -> None:
        state.write_text("\n".join((f"driver {driver}", f"cuda {cuda}", *lines)))

    return write


def _findings(start: CheckStart, *words: str) -> list[Finding]:
    checked = start("m", *words, version="0.32.0")
    return list(device_findings(checked, ModelOnDisk(checked)))


def test_what_the_driver_reports(set_gpus):
    set_gpus(H200.format(0, 100 * GIB), H200.format(1, GIB), f"process 1 {os.getpid()} {139 * GIB}")
    state = read_gpus()
    assert state is not None
    assert (state.driver, state.cuda, state.problem) == ("570.86", (12, 8), None)
    first, second = state.gpus
    assert (first.name, first.uuid, first.total_bytes, first.free_bytes) == ("H200", "GPU-0", 140 * GIB, 100 * GIB)
    assert first.processes == ()
    assert [(process.pid, process.used_bytes) for process in second.processes] == [(os.getpid(), 139 * GIB)]


def test_free_gpus(start, set_gpus):
    set_gpus(*(H200.format(i, 139 * GIB) for i in range(4)))
    assert _findings(start, "-tp", "2", "-pp", "2") == []


def test_too_few_gpus(start, set_gpus):
    set_gpus(H200.format(0, 139 * GIB))
    (finding,) = _findings(start, "-tp", "2", "-dp", "2")
    assert finding.severity == "error"
    assert finding.message.startswith(
        "--tensor-parallel-size 2 and --data-parallel-size 2 need 4 GPUs on this node, and 1 can be used"
    )


@pytest.mark.parametrize(("visible", "number"), [("0,1", 2), ("1", 1), ("GPU-1,GPU-0", 2), ("1,7,0", 1)])
def test_visible_gpus(start, set_gpus, monkeypatch, visible, number):
    set_gpus(H200.format(0, 139 * GIB), H200.format(1, 139 * GIB))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert _findings(start, "-tp", str(number)) == []
    assert "GPUs on this node" in _findings(start, "-tp", str(number + 1))[0].message


def test_hidden_gpus(start, set_gpus, monkeypatch):
    set_gpus(H200.format(0, 139 * GIB))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    (finding,) = _findings(start)
    assert (finding.severity, "unset it" in finding.message) == ("error", True)


def test_parts_of_gpus_are_not_counted(start, set_gpus, monkeypatch):
    set_gpus(H200.format(0, 139 * GIB))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "MIG-1,MIG-2")
    assert _findings(start, "-tp", "2") == []


def test_memory_that_others_hold(start, set_gpus):
    set_gpus(H200.format(0, 20 * GIB), f"process 0 {os.getpid()} {119 * GIB}")
    (finding,) = _findings(start, "--gpu-memory-utilization", "0.9")
    assert finding.severity == "warning"
    assert "GPU 0 (H200) has 20.0 GiB of 140.0 GiB free" in finding.message
    assert f"pid {os.getpid()} (" in finding.message
    assert "holds 119.0 GiB" in finding.message
    assert finding.message.endswith("or give 0.13")


def test_an_old_driver(start, set_gpus, monkeypatch):
    set_gpus(H200.format(0, 139 * GIB), driver="470.1", cuda=11040)
    monkeypatch.setattr(devices, "_COMPATIBILITY", Path("/missing"))
    monkeypatch.delenv("LD_LIBRARY_PATH", raising=False)
    (finding,) = _findings(start)
    assert finding.severity == "error"
    assert "the driver 470.1 supports CUDA 11.4, and torch is built for CUDA 12.8" in finding.message
    monkeypatch.setenv("LD_LIBRARY_PATH", "/usr/local/cuda/compat")
    assert _findings(start)[0].severity == "warning"


def test_an_older_minor_version_works(start, set_gpus):
    set_gpus(H200.format(0, 139 * GIB), driver="535.1", cuda=12020)
    assert _findings(start) == []


def test_a_driver_that_cannot_be_used(start, set_gpus):
    set_gpus("init 18")
    (finding,) = _findings(start)
    assert "no GPU can be used: Driver/library version mismatch" in finding.message


def test_no_driver(start, set_gpus, monkeypatch):
    monkeypatch.setattr(nvml, "_LIBRARIES", ("libno-such.so",))
    (finding,) = _findings(start)
    assert finding.severity == "error"
    assert "there is no NVIDIA driver here" in finding.message


def test_a_vllm_for_cpus_needs_no_gpu(start, monkeypatch):
    monkeypatch.setattr(devices, "read_memory", lambda: MemoryState(8 * GIB, 16 * GIB))
    checked = start("m")
    assert list(device_findings(checked, ModelOnDisk(checked))) == []


@pytest.mark.parametrize(
    ("size_gib", "is_cgroup", "severity"),
    [(4, False, None), (12, False, "warning"), (100, False, "error"), (100, True, "warning")],
)
def test_memory_of_a_cpu(start, monkeypatch, size_gib, severity, *, is_cgroup):
    monkeypatch.setattr(devices, "read_memory", lambda: MemoryState(8 * GIB, 16 * GIB, is_cgroup=is_cgroup))
    checked = start("m", "--kv-cache-memory-bytes", str(size_gib * GIB))
    found = list(device_findings(checked, ModelOnDisk(checked)))
    assert [finding.severity for finding in found] == ([severity] if severity else [])


def test_the_variable_for_the_cache_counts_first(start, monkeypatch):
    monkeypatch.setattr(devices, "read_memory", lambda: MemoryState(8 * GIB, 16 * GIB))
    monkeypatch.setenv("VLLM_CPU_KVCACHE_SPACE", "40")
    checked = start("m", "--kv-cache-memory-bytes", "1")
    (finding,) = device_findings(checked, ModelOnDisk(checked))
    assert "VLLM_CPU_KVCACHE_SPACE=40 asks for 40.0 GiB" in finding.message


@pytest.mark.parametrize(
    ("ids", "visible", "told"),
    [
        ("5", None, "--device-ids: this machine has no GPU 5: take 0 to 1"),
        ("0,2,3", None, "has no GPU 2, 3: take 0 to 1"),
        ("1", "1", "CUDA_VISIBLE_DEVICES=1 has no GPU 1: take only 0"),
        ("0,0", None, "--device-ids 0,0 names a GPU twice"),
        ("0,1", None, ""),
        ("1", "0,1", ""),
        ("1", "", ""),
        ("GPU-7", None, ""),
    ],
)
def test_numbers_of_gpus_that_are_not_there(start, set_gpus, monkeypatch, ids, visible, told):
    set_gpus(H200.format(0, 139 * GIB), H200.format(1, 139 * GIB))
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    found = [finding for finding in _findings(start, "--device-ids", ids) if "--device-ids" in finding.message]
    assert [finding.severity for finding in found] == ["error"] * bool(told)
    assert told in "".join(finding.message for finding in found)
    assert _findings(start, "--device-ids", ids, "--distributed-executor-backend", "ray") == []


@pytest.mark.parametrize(
    ("words", "is_told"),
    [("--kv-cache-memory-bytes 150G", True), ("--kv-cache-memory-bytes 139G", False), ("--max-num-seqs 2", False)],
)
def test_a_kv_cache_larger_than_a_gpu(start, set_gpus, words, is_told):
    set_gpus(H200.format(0, 139 * GIB))
    found = _findings(start, *words.split())
    assert [(each.severity, "give less" in each.message) for each in found] == [("error", True)] * is_told


@pytest.mark.parametrize(
    ("device", "words", "is_told"),
    [
        *((device, "--enable-sleep-mode", device == "cpu") for device in ("cpu", "cuda", "rocm", "xpu", "other")),
        ("cpu", "--no-enable-sleep-mode", False),
        ("cpu", "--enable-eplb", True),
        ("cpu", "--enable-cumem-allocator", True),
        ("rocm", "--enable-mamba-cache-stochastic-rounding", True),
        ("cuda", "--enable-mamba-cache-stochastic-rounding", False),
        ("rocm", "--kda-prefill-backend flashkda", True),
        ("cuda", "--kda-prefill-backend fused", True),
    ],
)
def test_what_the_configuration_refuses_on_this_device(start, set_gpus, monkeypatch, device, words, is_told):
    set_gpus(H200.format(0, 139 * GIB))
    monkeypatch.setattr(InstalledVllm, "device", device)
    found = [each for each in _findings(start, *words.split()) if each.check == "device"]
    assert [(each.severity, words in each.message) for each in found] == [("error", True)] * is_told


def test_a_plugin_may_accept_what_the_configuration_refuses(start, monkeypatch):
    monkeypatch.setattr(InstalledVllm, "device", "cpu")
    checked = start("m", "--enable-sleep-mode", has_plugin=True)
    assert [each for each in device_findings(checked, ModelOnDisk(checked)) if each.check == "device"] == []
