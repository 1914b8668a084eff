"""The devices, programs and files of a start, and which models can sleep. libnvidia-ml.so is a fake."""

import json
import os
import re
import subprocess
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from base.machine import nvml
from base.machine.memory import MemoryState
from base.machine.nvml import read_gpus
from startup.hook import Text
from startup.session.preflight.report import Finding
from startup.settings.flag import Flag
from startup.vllm_arguments import installed, vllm_record
from startup.vllm_arguments.installed import InstalledVllm, TorchBuild
from startup.vllm_arguments.preflight import devices, surroundings
from startup.vllm_arguments.preflight.devices import can_sleep, deepest_level, device_findings
from startup.vllm_arguments.preflight.model import ModelOnDisk
from startup.vllm_arguments.preflight.surroundings import surroundings_findings
from startup.vllm_arguments.vllm_record import Plugin
from tests.startup.vllm_arguments.preflight.conftest import CheckStart
from tests.support.marks import needs_tool

GIB = 1 << 30
H200 = f"gpu H200 GPU-{{}} {140 * GIB} {{}}"
ONE, TWO, FOUR = (tuple(H200.format(number, 139 * GIB) for number in range(count)) for count in (1, 2, 4))


@pytest.fixture(scope="session")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("nvml") / "libnvidia-ml.so.1"
    source = Path(__file__).with_name("false_nvml.c")
    subprocess.run(["cc", "-shared", "-fPIC", "-O1", "-o", path, source], check=True)
    return path


@pytest.fixture
def set_gpus(library: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """A function that sets the GPUs of the fake library by lines. torch is built for CUDA 12.8."""
    state = tmp_path / "state"
    monkeypatch.setenv("FALSE_NVML", str(state))
    for name in ("CUDA_VISIBLE_DEVICES", "LD_LIBRARY_PATH"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(nvml, "_LIBRARIES", (str(library),))
    monkeypatch.setattr(devices, "_COMPATIBILITY", Path("/missing"))
    for module in (devices, installed):
        monkeypatch.setattr(module, "read_torch_build", lambda: TorchBuild((12, 8)))

    def write(*lines: str) -> None:
        state.write_text("\n".join(("driver 570.86", "cuda 12080", *lines)))

    return write


def _findings(start: CheckStart, *arguments: str, **options: object) -> list[Finding]:
    checked = start("m", *arguments, **{"version": "0.32.0", **options})
    found = device_findings(checked, ModelOnDisk(checked))
    return [each for each in found if each.severity != "unchecked"]


@needs_tool("cc")
def test_what_the_driver_reports(set_gpus):
    set_gpus(H200.format(0, 100 * GIB), H200.format(1, GIB), f"process 1 {os.getpid()} {139 * GIB}")
    state = read_gpus()
    assert (state.driver, state.cuda, state.problem) == ("570.86", (12, 8), None)
    first, second = state.gpus
    assert (first.name, first.uuid, first.total_bytes, first.free_bytes) == ("H200", "GPU-0", 140 * GIB, 100 * GIB)
    assert first.processes == ()
    assert [(process.pid, process.used_bytes) for process in second.processes] == [(os.getpid(), 139 * GIB)]


_HELD = r"^GPU 0 \(H200\) has 20.0 GiB of 140.0 GiB free, .*\bpid PID \(.* holds 119.0 GiB.*or give 0.13$"
_OLD = "the driver 470.1 supports CUDA 11.4, and torch is built for CUDA 12.8"


@needs_tool("cc")
@pytest.mark.parametrize(
    ("lines", "arguments", "variables", "severity", "told"),
    [
        (FOUR, "-tp 2 -pp 2", {}, None, ""),
        (
            ONE,
            "-tp 2 -dp 2",
            {},
            "error",
            "^--tensor-parallel-size 2 and --data-parallel-size 2 need 4 GPUs on this node, and 1 can be used",
        ),
        *(
            (
                TWO,
                f"-tp {number + is_more}",
                {"CUDA_VISIBLE_DEVICES": visible},
                "error" if is_more else None,
                "GPUs on this node" * is_more,
            )
            for visible, number in (("0,1", 2), ("1", 1), ("GPU-1,GPU-0", 2), ("1,7,0", 1))
            for is_more in (0, 1)
        ),
        (ONE, "", {"CUDA_VISIBLE_DEVICES": ""}, "error", "unset it"),
        (ONE, "-tp 2", {"CUDA_VISIBLE_DEVICES": "MIG-1,MIG-2"}, None, ""),  # parts of GPUs are not counted
        (
            (H200.format(0, 20 * GIB), f"process 0 PID {119 * GIB}"),
            "--gpu-memory-utilization 0.9",
            {},
            "warning",
            _HELD,
        ),
        ((*ONE, "driver 470.1", "cuda 11040"), "", {}, "error", _OLD),
        ((*ONE, "driver 470.1", "cuda 11040"), "", {"LD_LIBRARY_PATH": "/usr/local/cuda/compat"}, "warning", _OLD),
        ((*ONE, "driver 535.1", "cuda 12020"), "", {}, None, ""),
        (("init 18",), "", {}, "error", "no GPU can be used: Driver/library version mismatch"),
        (TWO, "--device-ids 5", {}, "error", "--device-ids: this machine has no GPU 5: take 0 to 1"),
        (TWO, "--device-ids 0,2,3", {}, "error", "has no GPU 2, 3: take 0 to 1"),
        (TWO, "--device-ids 1", {"CUDA_VISIBLE_DEVICES": "1"}, "error", "_DEVICES=1 has no GPU 1: take only 0"),
        (TWO, "--device-ids 0,0", {}, "error", "--device-ids 0,0 names a GPU twice"),
        (TWO, "--device-ids 0,1", {}, None, ""),
        (TWO, "--device-ids 1", {"CUDA_VISIBLE_DEVICES": "0,1"}, None, ""),
        (TWO, "--device-ids 1", {"CUDA_VISIBLE_DEVICES": ""}, None, ""),
        (TWO, "--device-ids GPU-7", {}, None, ""),
        (TWO, "--device-ids 5 --distributed-executor-backend ray", {}, None, ""),
        (ONE, "--kv-cache-memory-bytes 150G", {}, "error", "give less"),
        (ONE, "--kv-cache-memory-bytes 139G", {}, None, ""),
    ],
)
def test_gpus_that_a_start_needs(start, set_gpus, monkeypatch, lines, arguments, variables, severity, told):
    set_gpus(*(line.replace("PID", str(os.getpid())) for line in lines))
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    found = _findings(start, *arguments.split())
    assert [finding.severity for finding in found] == ([severity] if severity else [])
    assert re.search(told.replace("PID", str(os.getpid())), "".join(finding.message for finding in found))


@needs_tool("cc")
def test_no_driver(start, set_gpus, monkeypatch):
    monkeypatch.setattr(nvml, "_LIBRARIES", ("libno-such.so",))
    (finding,) = _findings(start)
    assert (finding.severity, "there is no NVIDIA driver here" in finding.message) == ("error", True)


@needs_tool("cc")
@pytest.mark.parametrize(
    ("arguments", "space", "is_cgroup", "severity"),
    [
        ("", "", False, None),
        (f"--kv-cache-memory-bytes {4 * GIB}", "", False, None),
        (f"--kv-cache-memory-bytes {12 * GIB}", "", False, "warning"),
        (f"--kv-cache-memory-bytes {100 * GIB}", "", False, "error"),
        (f"--kv-cache-memory-bytes {100 * GIB}", "", True, "warning"),
        ("--kv-cache-memory-bytes 1", "40", False, "error"),
    ],
)
def test_memory_of_a_cpu(start, monkeypatch, arguments, space, is_cgroup, severity):
    monkeypatch.setattr(devices, "read_memory", lambda: MemoryState(8 * GIB, 16 * GIB, is_cgroup=is_cgroup))
    monkeypatch.setenv("VLLM_CPU_KVCACHE_SPACE", space)
    found = _findings(start, *arguments.split(), version="0.32.0+cpu")
    assert [finding.severity for finding in found] == ([severity] if severity else [])
    assert not space or "VLLM_CPU_KVCACHE_SPACE=40 asks for 40.0 GiB" in found[0].message


@needs_tool("cc")
@pytest.mark.parametrize(
    ("arguments", "device", "told"),
    [
        ("--cpu-offload-gb 64", "cuda", "--cpu-offload-gb 64 asks for 64.0 GiB, and the machine has 16.0 GiB"),
        ("--cpu-offload-gb 10 -tp 2", "cuda", "--cpu-offload-gb 10 for each of 2 GPUs asks for 20.0 GiB"),
        ("--cpu-offload-gb 6 -tp 2", "cuda", "and 8.0 GiB of the machine's memory are available"),
        ("--cpu-offload-gb 2", "cuda", ""),
        ("--kv-offloading-size 20", "cuda", "--kv-offloading-size 20 asks for 20.0 GiB"),
        ("--mm-processor-cache-gb 1e9", "cuda", "--mm-processor-cache-gb 1e+09 asks for"),
        ("--mm-processor-cache-gb inf", "cuda", ""),
        ("--kv-cache-memory-bytes 150G", "cuda", "asks for 150.0 GiB of each GPU, and a GPU has 140.0 GiB"),
        ("--kv-cache-memory-bytes 110G", "cuda", "asks for 110.0 GiB of each GPU, and 100.0 GiB are free"),
        ("--kv-cache-memory-bytes 20G", "cpu", "asks for 20.0 GiB, and the machine has 16.0 GiB"),
        ("", "cpu", "--gpu-memory-utilization 0.92, which is of the machine's memory here, needs 14.7 GiB"),
        ("--gpu-memory-utilization 0.4", "cpu", ""),
    ],
)
def test_memory_that_flags_ask_for_is_compared_with_what_there_is(
    start, set_gpus, monkeypatch, arguments, device, told
):
    set_gpus(*(H200.format(number, 100 * GIB) for number in (0, 1)))
    monkeypatch.setattr(InstalledVllm, "device", device)
    monkeypatch.setattr(devices, "read_memory", lambda: MemoryState(8 * GIB, 16 * GIB))
    monkeypatch.setattr(Text, "is_found", lambda _: True)
    record = [
        Flag((f"--{name}",), "float") for name in ("cpu-offload-gb", "kv-offloading-size", "mm-processor-cache-gb")
    ]
    checked = start("m", *arguments.split(), version="0.32.0", more_flags=record)
    found = [each for each in device_findings(checked, ModelOnDisk(checked)) if each.severity in ("error", "warning")]
    messages = [each.message for each in found if not each.message.startswith("GPU ")]  # about their own share
    assert [told in message for message in messages] == [True] * bool(told), messages


@needs_tool("cc")
@pytest.mark.parametrize(
    ("device", "arguments", "is_told"),
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
def test_what_the_configuration_refuses_on_this_device(start, set_gpus, monkeypatch, device, arguments, is_told):
    """A plugin may accept it."""
    set_gpus(*ONE)
    monkeypatch.setattr(InstalledVllm, "device", device)
    found = [each for each in _findings(start, *arguments.split()) if each.check == "device"]
    assert [(each.severity, arguments in each.message) for each in found] == [("error", True)] * is_told
    assert [each for each in _findings(start, *arguments.split(), has_plugin=True) if each.check == "device"] == []


def _found(start: CheckStart, *arguments: str, version: str = "0.32.0+cpu") -> list[tuple[str, str]]:
    found = surroundings_findings(start("m", *arguments, version=version))
    return [(finding.check, finding.severity) for finding in found if finding.check not in ("shm", "nofile")]


@pytest.fixture
def has_programs(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """A function after which only these programs are installed."""
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.delenv("CC", raising=False)

    def set_programs(*names: str) -> None:
        monkeypatch.setattr(surroundings.shutil, "which", lambda name: name if name in names else None)

    return set_programs


def test_a_compiler_for_a_cpu(start, has_programs):
    has_programs("g++")
    assert _found(start) == []
    has_programs()
    assert _found(start) == [("compiler", "warning")]
    assert _found(start, "-O0") == []


def test_a_compiler_for_a_gpu(start, has_programs, monkeypatch, tmp_path):
    monkeypatch.setattr(installed, "read_torch_build", lambda: TorchBuild((13, 0)))
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    has_programs()
    assert _found(start, version="0.32.0") == [("compiler", "warning")]
    has_programs("gcc")
    monkeypatch.setattr(surroundings.sysconfig, "get_paths", lambda: {"include": str(tmp_path)})
    assert _found(start, version="0.32.0") == [("compiler", "warning")]
    (tmp_path / "Python.h").touch()
    assert _found(start, version="0.32.0") == []


@pytest.mark.parametrize(
    ("variables", "told"),
    [
        pytest.param({}, [], id="kernels are kept below VLLM_CACHE_ROOT"),
        pytest.param({"VLLM_CACHE_ROOT": "/proc/cache"}, ["TRITON_CACHE_DIR"], id="Triton's own folder is needed"),
        pytest.param({"TRITON_CACHE_DIR": "/proc/triton"}, ["TRITON_CACHE_DIR"], id="a chosen folder"),
    ],
)
def test_a_folder_for_kernels_can_be_written_to(start, monkeypatch, tmp_path, variables, told):
    monkeypatch.setattr(installed, "read_torch_build", lambda: TorchBuild((13, 0)))
    for name, value in {"HOME": "/proc/home", "VLLM_CACHE_ROOT": str(tmp_path), **variables}.items():
        monkeypatch.setenv(name, value)
    findings = [each for each in surroundings_findings(start("m", version="0.32.0")) if each.check == "cache"]
    assert [each.message.split(": set ")[1].split()[0] for each in findings] == told
    assert all("/proc cannot be written to" in each.message for each in findings)


@pytest.mark.parametrize(
    ("ranks", "version", "told"), [(2, "0.32.0", ["2.0 GiB"]), (1, "0.32.0+cpu", ["160.0 MiB"]), (1, "0.32.0", [])]
)
def test_ranks_need_shared_memory(start, monkeypatch, ranks, version, told):
    monkeypatch.setattr(surroundings.shutil, "disk_usage", lambda _: SimpleNamespace(free=64 << 20))
    findings = surroundings_findings(start("m", "-tp", str(ranks), version=version))
    texts = [finding.message for finding in findings if finding.check == "shm"]
    assert [text.split(": ")[0] for text in texts] == [
        f"/dev/shm has 64.0 MiB free, this start may need {need}" for need in told
    ]


def test_a_long_text_is_no_path_that_cannot_be_looked_up(start, monkeypatch):
    monkeypatch.setenv("VLLM_LOGGING_CONFIG_PATH", f'{{"version": 1, "a": "{"x" * 5000}"}}')
    assert ("environment", "error") in _found(start)


_CUDA = TorchBuild((13, 0))


@pytest.fixture
def vllm(package: Path, monkeypatch: pytest.MonkeyPatch) -> InstalledVllm:
    """A fake installed vLLM, which is built for CUDA."""
    found = InstalledVllm("0.33.0", package)
    monkeypatch.setattr(devices, "find_vllm", lambda: found)
    monkeypatch.setattr(installed, "read_torch_build", lambda: _CUDA)
    return found


@pytest.mark.parametrize(
    ("version", "build", "variables", "reason"),
    [
        ("0.33.0", _CUDA, {}, ""),
        ("0.29.0", TorchBuild(None, hip="7.0"), {}, ""),
        ("0.33.0+xpu", TorchBuild(None, xpu="20250101"), {}, ""),
        ("0.33.0+cpu", TorchBuild(None), {}, "for cpu, has no sleep mode"),
        ("0.33.0", TorchBuild(None), {}, "for other, has no sleep mode"),
        ("0.33.0", _CUDA, {"VLLM_TARGET_DEVICE": "CPU"}, "for cpu, has no sleep mode"),
        ("0.33.0", _CUDA, {"VLLM_USE_RUST_FRONTEND": "1"}, "Rust frontend"),
        ("0.33.0", _CUDA, {"VLLM_USE_RUST_FRONTEND": "0"}, ""),
    ],
    ids=["cuda", "rocm", "xpu", "cpu", "unknown", "variable", "rust", "not-rust"],
)
def test_a_platform_has_the_sleep_mode_or_not(version, build, variables, reason, package, monkeypatch):
    monkeypatch.setattr(devices, "find_vllm", lambda: InstalledVllm(version, package))
    monkeypatch.setattr(installed, "read_torch_build", lambda: build)
    found = can_sleep(variables)
    assert reason in found
    assert bool(reason) == bool(found)


def test_a_platform_of_a_plugin_is_not_known(vllm, monkeypatch):
    own = Plugin("vllm.platform_plugins", "own", "own-1.0.dist-info")
    monkeypatch.setattr(vllm_record, "read_plugins", lambda: {"site-packages": (own,)})
    assert "a plugin decides about it" in can_sleep({})


def test_without_vllm_nothing_sleeps(monkeypatch):
    monkeypatch.setattr(devices, "find_vllm", lambda: None)
    assert can_sleep({}) == "vLLM is not installed"


def _model(folder: Path, **changes: Any) -> str:
    config = {"architectures": ["LlamaForCausalLM"], "model_type": "llama", **changes}
    (folder / "config.json").write_text(json.dumps(config))
    return str(folder)


@pytest.mark.parametrize(
    ("arguments", "level"),
    [
        ("--tensor-parallel-size 2 --max-model-len 2048", 2),
        ("--load-format safetensors", 2),
        ("--load-format dummy", 1),
        ("--load-format runai_streamer", 1),
        ("--quantization fp8", 1),
        ("-q fp8", 1),
        ("--enable-lora", 1),
        ("--no-enable-lora", 2),
        ('--speculative-config {"method":"ngram"}', 1),
        ("--runner pooling", 1),
        ("--hf-overrides {}", 1),
        ("--kv-cache-dtype fp8", 1),
        ("--kv-transfer-config {}", 0),
        ("--kv-transfer-config {} --enable-sleep-mode", 2),
        ("--nnodes 2 --node-rank 0", 0),
    ],
)
def test_arguments_decide_how_deep_a_model_sleeps(vllm, tmp_path, arguments, level):
    assert deepest_level([_model(tmp_path), *arguments.split()]) == level


@pytest.mark.parametrize(
    ("changes", "level"),
    [
        ({}, 2),
        ({"quantization_config": None}, 2),
        ({"architectures": ["LlamaForSequenceClassification"]}, 1),
        ({"architectures": []}, 1),
        ({"architectures": None}, 1),
        ({"quantization_config": {"quant_method": "fp8"}}, 1),
        ({"model_type": "bloom"}, 1),
        ({"model_type": "qwen3_moe"}, 1),
        ({"auto_map": {"AutoModel": "own.Model"}}, 1),
    ],
    ids=["plain", "off", "classifier", "none", "null", "quantized", "alibi", "experts", "own-code"],
)
def test_a_model_that_reloading_may_not_restore_keeps_its_weights(vllm, tmp_path, changes, level):
    assert deepest_level([_model(tmp_path, **changes)]) == level


def test_a_model_that_is_not_on_disk_keeps_its_weights(vllm, tmp_path):
    assert deepest_level([str(tmp_path / "none")]) == 1
