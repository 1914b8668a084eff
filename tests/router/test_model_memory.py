"""Measures models' memory on real processes. Estimates it from arguments, variables and real files."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from typing import cast

import psutil
import pytest

from base.machine.memory import MemoryState, read_memory
from base.machine.nvml import Gpu, GpuProcess
from router.memory_watch import MemoryWatch
from router.model_entry import ForeignCommand, ModelEntry
from router.model_memory import MemoryMeter, converted_bytes, default_budget, estimate, weight_bytes
from router.scheduling.scheduler import ModelScheduler
from router.scheduling.terms import ModelRules, Need, SchedulerLimits
from startup.session.preflight.memory_fit import PROGRAM_BYTES
from tests.startup.session.preflight.conftest import write_safetensors

MIB = 1 << 20
GIB = 1 << 30
_HOLD = "block = bytearray({size}); block[::4096] = b'x' * len(block[::4096]); "
_PARENT = (
    "import subprocess, sys; "
    + _HOLD
    + "child = subprocess.Popen([sys.executable, '-c', {child!r}], stdout=subprocess.PIPE, stdin=subprocess.PIPE); "
    "child.stdout.readline(); print('ready', flush=True); sys.stdin.readline(); child.communicate()"
)
_CHILD = _HOLD + "print('ready', flush=True); import sys; sys.stdin.readline()"

Tree = subprocess.Popen[bytes]


@pytest.fixture
def tree() -> Iterator[Tree]:
    """A process with 40 MiB of memory, and its child with 60 MiB."""
    script = _PARENT.format(size=40 * MIB, child=_CHILD.format(size=60 * MIB))
    with subprocess.Popen([sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        process.stdout.readline()
        yield process
        process.communicate()


def gpu(number: int) -> Gpu:
    return Gpu(number, f"GPU-{number}", "H200", 100 * GIB, 90 * GIB, ())


def entry(*arguments: str, **values: object) -> ModelEntry:
    return ModelEntry(name="m", arguments=("/models/m", *arguments), **{"engine": "embedded", **values})  # type: ignore[arg-type]


# Measured


def test_a_measurement_has_the_whole_process_tree_once_until_it_ends(tree):
    (child,) = psutil.Process(tree.pid).children()
    meter = MemoryMeter(lambda name: None)
    for roots in ([tree.pid], [tree.pid, child.pid]):
        memory = meter.measure("m", roots)
        assert 100 * MIB < memory.ram_bytes < 160 * MIB
        assert memory.gpu_bytes == 0
        assert meter.measured_bytes("m") == memory.ram_bytes
    tree.communicate()
    assert meter.measure("m", [tree.pid]) == Need()
    meter.forget("m")
    assert meter.measured_bytes("m") is None


def test_the_default_budget_is_what_the_machine_has():
    state = read_memory()
    assert default_budget() == state.total_bytes


# Sizes on disk


def test_the_size_of_a_model_is_that_of_the_weights_that_are_loaded(tmp_path):
    (tmp_path / "model.safetensors").write_bytes(b"x" * 3000)
    (tmp_path / "pytorch_model.bin").write_bytes(b"x" * 5000)
    (tmp_path / "tokenizer.json").write_bytes(b"x" * 700)
    assert weight_bytes(tmp_path) == 3000
    (file := tmp_path / "gguf" / "model.gguf").parent.mkdir()
    file.write_bytes(b"x" * 4000)
    assert weight_bytes(file) == weight_bytes(file.parent) == 4000


@pytest.mark.parametrize(
    ("config", "engine", "takes_images"),
    [
        ({"model_type": "smolvlm", "vision_config": {}}, "embedded", True),
        ({"model_type": "mllama", "vision_config": {}}, "embedded", False),
        ({"model_type": "mllama", "vision_config": {}}, "vllm", True),
        ({"model_type": "phi3_v", "img_processor": {}}, "vllm", True),
        ({"model_type": "llama"}, "vllm", False),
        ({}, "vllm", None),
    ],
)
def test_the_page_knows_which_models_take_images(tmp_path, config, engine, takes_images):
    if config:
        (tmp_path / "config.json").write_text(json.dumps(config))
    meter = MemoryMeter(lambda _: str(tmp_path))
    meter.need_of(entry(engine=engine))
    assert meter.takes_images("m") is takes_images


def test_a_size_is_read_once_and_again_after_a_download(tmp_path):
    places: list[str | None] = [None]
    meter = MemoryMeter(lambda name: places[0])
    assert meter.size_bytes("m") is None
    (tmp_path / "model.safetensors").write_bytes(b"x" * 3000)
    places[0] = str(tmp_path)
    assert meter.size_bytes("m") is None
    meter.measure("m", [])
    assert meter.size_bytes("m") == 3000
    places[0] = None
    assert meter.size_bytes("m") == 3000


def test_a_changed_entry_may_be_another_model(tmp_path):
    file = tmp_path / "model.gguf"
    file.write_bytes(b"x" * 1000)
    meter = MemoryMeter(lambda name: str(file))
    meter.need_of(entry())
    file.write_bytes(b"x" * 2000)
    meter.need_of(entry())
    assert meter.size_bytes("m") == 1000
    meter.need_of(entry("--max-model-len", "8k"))
    assert meter.size_bytes("m") == 2000


@pytest.mark.parametrize(
    ("arguments", "engine", "config", "size"),
    [
        ("", "embedded", {"dtype": "float32"}, None),
        ("--dtype bfloat16", "embedded", {"dtype": "float32"}, 24),
        ("--dtype=float32", "embedded", {"dtype": "float32"}, 40),
        ("--dtype auto", "vllm", {"dtype": "float32"}, 24),
        ("", "vllm", {}, 24),
        ("--dtype float", "vllm", {"torch_dtype": "float32"}, 40),
        ("", "vllm", {"dtype": "bfloat16"}, None),
        ("--quantization fp8", "vllm", {"dtype": "bfloat16"}, 6),
        ("-q gptq", "vllm", {"dtype": "bfloat16", "quantization_config": {"quant_method": "gptq"}}, None),
        ("-q None", "vllm", {"dtype": "bfloat16"}, None),
        ("--config {folder}/settings.yaml", "vllm", {"dtype": "float32"}, 40),
    ],
)
def test_weights_are_converted_while_they_are_loaded(tmp_path, arguments, engine, config, size):
    """The model has eight int8 elements, which are not converted, and eight float32 elements.

    `size` is None if nothing is converted.
    """
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llama", **config}))
    (tmp_path / "settings.yaml").write_text("dtype: float32\n")
    write_safetensors(tmp_path / "model.safetensors", {"a": ("F32", [8], 32), "b": ("I8", [8], 8)})
    model = entry(*arguments.format(folder=tmp_path).split(), engine=engine)
    assert converted_bytes(model, tmp_path) == size
    meter = MemoryMeter(lambda name: str(tmp_path))
    assert meter.need_of(model) == estimate(model, size or weight_bytes(tmp_path))
    assert meter.size_bytes("m") == weight_bytes(tmp_path)


# Estimates


def test_an_embedded_model_needs_its_weights_and_the_program():
    assert estimate(entry(), GIB) == Need(int(1.1 * GIB) + PROGRAM_BYTES)


@pytest.mark.parametrize(
    ("arguments", "added"),
    [
        pytest.param(("--kv-cache-memory-bytes", "2G"), 2 * GIB, id="value"),
        pytest.param(("--kv-cache-memory-bytes=2147483648",), 2 * GIB, id="attached"),
        pytest.param(("--kv_cache_memory_bytes", "2G"), 2 * GIB, id="underscores"),
        pytest.param(("--kv-cache-memory-bytes", "much"), 0, id="invalid"),
        pytest.param(("--kv-cache-memory-bytes",), 0, id="no value"),
    ],
)
def test_the_kv_cache_counts_if_its_size_is_given(arguments, added):
    assert estimate(entry(*arguments), GIB).ram_bytes - estimate(entry(), GIB).ram_bytes == added


def test_vllm_without_a_gpu_needs_a_share_of_the_machine_for_every_start(monkeypatch):
    monkeypatch.setattr("router.model_memory.read_memory", lambda: MemoryState(80 * GIB, 100 * GIB))
    meter = MemoryMeter(lambda name: None)
    assert meter.need_of(entry(engine="vllm")) == Need(92 * GIB)
    assert meter.need_of(entry("--gpu-memory-utilization", "0.25", engine="vllm")) == Need(25 * GIB)
    assert meter.measure("m", []) == Need(25 * GIB)
    assert meter.measured_bytes("m") == 0


@pytest.mark.parametrize(
    ("model", "reserved"),
    [
        (entry(engine="vllm", env={"VLLM_CPU_KVCACHE_SPACE": "8"}), 8 * GIB),
        (entry("--kv-cache-memory-bytes", "2G", engine="vllm"), 2 * GIB),
        (entry("--kv-cache-memory-bytes", "2G"), 2 * GIB),
        (entry(), 0),
    ],
    ids=["variable", "flag", "embedded engine", "no size"],
)
def test_a_measurement_is_never_below_what_the_settings_reserve(model, reserved, tree):
    """A KV cache takes its memory later: during serving, or with requests."""
    meter = MemoryMeter(lambda name: None)
    meter.need_of(model)
    measured = meter.measure("m", [tree.pid]).ram_bytes
    assert measured == reserved if reserved else measured < 160 * MIB


def test_a_measurement_on_a_gpu_is_never_below_the_share_that_must_be_free(monkeypatch):
    used = gpu(0)._replace(processes=(GpuProcess(os.getpid(), 10 * GIB),))
    monkeypatch.setattr("router.model_memory.read_gpus_here", lambda: (used,))
    meter = MemoryMeter(lambda name: None)
    for arguments, engine, needed in (
        ((), "vllm", 92),
        (("--gpu-memory-utilization", "0.5"), "vllm", 50),
        ((), "embedded", 10),
    ):
        meter.need_of(entry(*arguments, engine=engine))
        assert meter.measure("m", [os.getpid()]).gpu_bytes == needed * GIB


def test_vllm_does_not_know_the_limit_of_a_container(monkeypatch):
    state = MemoryState(80 * GIB, 100 * GIB, is_cgroup=True)
    monkeypatch.setattr("router.model_memory.read_memory", lambda: state)
    assert estimate(entry(engine="vllm"), GIB).ram_bytes < 4 * GIB


def test_vllm_on_a_cpu_with_a_size_of_its_kv_cache(monkeypatch):
    by_entry = estimate(entry(engine="vllm", env={"VLLM_CPU_KVCACHE_SPACE": "3"}), GIB)
    monkeypatch.setenv("VLLM_CPU_KVCACHE_SPACE", "3")
    by_environment = estimate(entry(engine="vllm"), GIB)
    by_flag = estimate(entry("--kv-cache-memory-bytes", "1G", engine="vllm"), GIB)
    assert by_entry == by_environment == by_flag, "the variable wins"
    assert 4 * GIB < by_entry.ram_bytes < 7 * GIB


@pytest.mark.parametrize(
    ("model", "needed_gib"),
    [
        (entry(engine="vllm"), 92),
        (entry(engine="vllm", env={"VLLM_CPU_KVCACHE_SPACE": "3"}), 92),
        (entry(), 90),
        (entry("-tp", "2", "--gpu-memory-utilization", "0.5"), 100),
        (entry("-dp", "2", engine="vllm"), 184),
        (entry(env={"CUDA_VISIBLE_DEVICES": ""}), 0),
    ],
    ids=["vllm", "no size for cpus", "embedded", "two gpus", "two copies", "no gpu is seen"],
)
def test_on_gpus_a_share_of_as_many_as_the_model_takes(model, needed_gib):
    assert estimate(model, GIB, [gpu(0), gpu(1)]).gpu_bytes == needed_gib * GIB


def test_on_gpus_a_kv_cache_with_a_size_needs_no_share():
    gpus = [gpu(0), gpu(1)]
    sized = estimate(entry("--kv-cache-memory-bytes", "10G"), 20 * GIB, gpus)
    assert sized.gpu_bytes == int(1.1 * 20 * GIB) + 11 * GIB
    assert sized.ram_bytes == PROGRAM_BYTES


def test_another_server_needs_all_parts_of_the_gguf_models_that_it_names(tmp_path):
    for name in ("m-00001-of-00002.gguf", "m-00002-of-00002.gguf", "n-00001-of-00002.gguf", "m.gguf"):
        (tmp_path / name).write_bytes(b"x" * 1000)
    arguments = ("llama-server", "-m", str(tmp_path / "m-00001-of-00002.gguf"), "--mmproj", "missing.gguf")
    foreign = ForeignCommand(arguments=arguments, address="http://127.0.0.1:1", port=None)
    assert estimate(ModelEntry(name="m", foreign=foreign, engine="other"), 0) == Need((256 << 20) + 2200)


def test_an_alias_that_looks_like_a_file_lets_no_folder_be_searched(tmp_path, monkeypatch):
    """The router's folder may be a home folder with a million files."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("os.walk", lambda *_: pytest.fail("a folder is searched"))
    (file := tmp_path / "m.gguf").write_bytes(b"x" * 1000)
    arguments = ("llama-server", "-m", str(file), "--alias", "qwen.gguf")
    model = ModelEntry(name="m", foreign=ForeignCommand(arguments=arguments, address="", port=None), engine="other")
    meter = MemoryMeter(lambda _: None)
    meter.need_of(model)
    assert not meter.forget_replaced(model)
    file.write_bytes(b"x" * 2000)
    assert meter.forget_replaced(model)


def test_where_the_driver_hides_who_uses_a_gpu_the_estimate_stands(monkeypatch):
    monkeypatch.setattr("router.model_memory.read_gpus_here", lambda: (gpu(0),))
    meter = MemoryMeter(lambda name: None)
    needed = meter.need_of(entry(engine="vllm"))
    assert meter.measure("m", []).gpu_bytes == needed.gpu_bytes == 92 * GIB
    assert (meter.free() or Need()).gpu_bytes == 90 * GIB


def test_asleep_a_model_needs_its_weights_at_level_1_and_a_part_of_each_gpu(monkeypatch, tmp_path):
    write_safetensors(tmp_path / "model.safetensors", {"w": ("BF16", [1 << 19], MIB)})
    monkeypatch.setattr("router.model_memory.read_gpus_here", lambda: (gpu(0), gpu(1)))
    meter = MemoryMeter(lambda _: str(tmp_path))
    model = entry("--tensor-parallel-size", "2", engine="vllm")
    needs = meter.asleep_needs_of(model)
    assert list(needs) == [1, 2]
    assert needs[2].gpu_bytes == needs[1].gpu_bytes == 2 * GIB
    assert needs[1].ram_bytes - needs[2].ram_bytes >= MIB
    copies = meter.asleep_needs_of(entry("--data-parallel-size", "2", engine="vllm"))
    assert copies[1].ram_bytes - copies[2].ram_bytes >= 2 * MIB
    here = meter.measure("m", [os.getpid()], 2)
    assert here.gpu_bytes == 2 * GIB, "the driver does not tell: the estimate"
    assert meter.asleep_needs_of(replace(model, sleep_levels=())) == {}


class _Meter:
    """A meter that returns these sizes one after the other."""

    def __init__(self, *sizes_gib: float) -> None:
        self.sizes = list(sizes_gib)

    def measure(self, name: str, pids: object, level: int) -> Need:
        return Need(int(self.sizes.pop(0) * GIB))

    def forget(self, name: str) -> None:
        """Does nothing, because nothing is kept."""


class _Watched:
    """A ready model, measured at the times that the test gives."""

    def __init__(self, *sizes_gib: float) -> None:
        self.meter = _Meter(*sizes_gib)
        self.scheduler = ModelScheduler(SchedulerLimits())
        self.scheduler.set_models({"m": ModelRules(need=Need(10 * GIB))}, 0.0)
        self.watch = MemoryWatch(cast("MemoryMeter", self.meter), self.scheduler, lambda actions: None)
        self.scheduler.arrive(1, "m", 0.0)
        self.scheduler.became_ready(1, 1.0)
        self.watch.follow(1, "m", [1])

    async def need_at(self, now: float) -> float:
        """The model's need in GiB, after all measurements that are due."""
        await self.watch._measure_due(now)
        return self.scheduler.view()["m"].need.ram_bytes / GIB


async def test_a_model_needs_its_estimate_until_two_measurements_agree():
    """vLLM on a CPU takes the memory of its KV cache only while it serves."""
    watched = _Watched(4, 6, 9.5, 9.5)
    assert [await watched.need_at(now) for now in (1, 5, 11, 21, 31)] == [10, 10, 10, 10, 9.5]
    assert watched.meter.sizes == []


async def test_a_measurement_above_the_estimate_counts_at_once():
    watched = _Watched(8, 12, 14, 14)
    assert [await watched.need_at(now) for now in (1, 11, 21, 31)] == [10, 12, 14, 14]


async def test_a_model_that_takes_no_more_is_measured_if_it_is_used():
    watched = _Watched(4, 4, 5)
    assert [await watched.need_at(now) for now in (1, 11, 200)] == [10, 4, 4]
    watched.watch.note_use("m")
    assert [await watched.need_at(now) for now in (260, 261)] == [5, 5]
