"""Every start in a home answers, an empty home loads what is shared, and few processes initialize CUDA."""

import json
import os
import re
import signal
import subprocess
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from envs.registry import env
from startup.vllm.journal import StartRecordings
from tests.gpu_stub.gpu_router import PREFIX, needs_root
from tests.gpu_stub.gpu_server import EAGER, MODEL, PYTHON, UUID, GpuServer, forks_beside_cuda, gpu_variables
from tests.gpu_stub.recipe_models import save_adapter
from tests.gpu_stub.sleeper import Sleeper
from tests.support.cli import python_output
from tests.support.peer_vllm import ROOT
from tests.support.ports import free_port
from tests.vllm_engine.plugin import write_entry_point

_USED_BYTES = 60 << 30
_KV_CACHE = re.compile(r"GPU KV cache size: ([\d,]+) tokens")


@pytest.mark.parametrize(
    "arguments", [pytest.param(EAGER, id="eager", marks=pytest.mark.ci_vllm), pytest.param(EAGER[1:], id="compiled")]
)
def test_cold_and_warm_starts_in_a_home_answer_alike(tmp_path, arguments):
    texts = set()
    for launcher in ("ours", "ours", "warm"):
        with GpuServer(launcher, *arguments, folder=tmp_path) as server:
            texts.add(server.wait_ready().generate())
            [engine] = server.assert_only(["EngineCore"])
            assert server.is_forked(engine)
            assert (server.main_process() != server.root) == (launcher == "warm")
            if launcher == "ours":
                late = {"cutlass", "flashinfer.decode", "vllm.model_executor.model_loader"}
                assert late.isdisjoint(_imported_in_fork(server)), "never, or before the fork"
            assert server.terminate(signal.SIGTERM) == 0
        assert "ERROR" not in server.log
        assert "initialised CUDA" not in server.log
    assert len(texts) == 1


def _imported_in_fork(server: GpuServer) -> list[str]:
    """The modules that the engine has imported after it was forked."""
    found = (process.environ().get(env.VCLI_START_FOLDER.name) for process in server.family())
    return StartRecordings.read(Path(next(filter(None, found)))).modules["EngineCore"]


_TP, _PP, _DP = "--tensor-parallel-size", "--pipeline-parallel-size", "--data-parallel-size"
_RAY = ROOT / ".peers" / "ray"
_NEEDS_RAY = pytest.mark.skipif(not _RAY.exists(), reason="Ray is not installed in .peers/ray")
_RANKS = [
    pytest.param((_TP, "3"), ["Worker_TP0", "Worker_TP1", "Worker_TP2"], id="TP 3", marks=pytest.mark.ci_vllm),
    pytest.param((_PP, "2"), ["Worker_PP0", "Worker_PP1"], id="PP 2"),
    pytest.param((_DP, "2"), ["Worker", "Worker"], id="DP 2"),
    pytest.param((_TP, "3", "--distributed-executor-backend", "ray"), None, id="TP 3 of Ray", marks=_NEEDS_RAY),
    pytest.param((_DP, "2", "--data-parallel-backend", "ray"), None, id="DP 2 of Ray", marks=_NEEDS_RAY),
]


@pytest.mark.parametrize(("arguments", "titles"), _RANKS)
def test_ranks_start_twice_in_a_home(tmp_path, arguments, titles):
    """vLLM's ranks are forks that initialize CUDA themselves. Ray's ranks end with Ray."""
    environment = {"STUB_GPUS": arguments[1]}
    if titles is None:
        environment |= {"PYTHONPATH": str(_RAY), "RAY_USAGE_STATS_ENABLED": "0"}
    for _ in range(2):
        with GpuServer("ours", *EAGER, *arguments, folder=tmp_path, environment=environment) as server:
            assert len({server.wait_ready().generate() for _ in range(4)}) == 1
            if titles is not None:
                assert all(server.is_forked(worker) for worker in server.assert_only(titles))
            assert server.terminate(signal.SIGTERM) == 0
        assert "Re-initialize" not in server.log


def test_two_nodes_with_a_gpu_each_start_twice_and_end(tmp_path):
    homes = [tmp_path / str(rank) for rank in range(2)]
    for home in homes:
        home.mkdir()
    for _ in range(2):
        arguments = (*EAGER, _PP, "2", "--nnodes", "2", "--master-addr", "127.0.0.1", "--master-port", str(free_port()))
        head, other = (
            GpuServer(
                "ours",
                *(*arguments, "--node-rank", str(rank), *more),
                folder=home,
                environment={"STUB_GPUS": "2", "CUDA_VISIBLE_DEVICES": str(rank)},
            )
            for rank, (home, more) in enumerate(zip(homes, ((), ("--headless",)), strict=True))
        )
        with other, head:
            assert len({head.wait_ready().generate() for _ in range(4)}) == 1
            for rank, node in enumerate((head, other)):
                [worker] = node.assert_only([f"Worker_PP{rank}"])
                assert node.is_forked(worker)
            assert other.health() == 0, "a headless node has no port"
            assert head.terminate(signal.SIGTERM) == 0
            assert other.terminate(signal.SIGTERM) == 0


def test_the_named_device_is_used_in_two_starts(tmp_path):
    for device in ("1", UUID % 1):
        environment = {"STUB_GPUS": "2", "CUDA_VISIBLE_DEVICES": device}
        with GpuServer("ours", *EAGER, folder=tmp_path, environment=environment) as server:
            assert server.wait_ready().generate()
            [engine] = server.assert_only(["EngineCore"])
            assert server.is_forked(engine)
            first, second = server.used_bytes()
            assert (first, second > _USED_BYTES) == (0, True)
            assert server.terminate(signal.SIGTERM) == 0


def test_a_compiled_start_and_the_next_one_have_the_same_kv_cache(home):
    sizes = []
    for turn in range(2):
        with GpuServer("ours", "--max-model-len", "2048", folder=home) as server:
            assert server.wait_ready().generate()
            server.assert_only(["EngineCore"])
            assert server.terminate(signal.SIGTERM) == 0
        sizes += _KV_CACHE.findall(server.log)
        assert ("Directly load AOT compilation" in server.log) == (turn == 1)
    assert sizes == [sizes[0]] * 2


_LENGTH = 1 << 17
"""A request of this length needs 2.8 GiB of KV cache."""


def test_a_start_that_fails_after_compiling_keeps_what_it_has_compiled(tmp_path):
    longer = ("--max-model-len", str(_LENGTH), "--hf-overrides", json.dumps({"max_position_embeddings": _LENGTH}))
    arguments = (*longer, "--gpu-memory-utilization", "0.8", "--preflight", "warn")
    with GpuServer("ours", *arguments, folder=tmp_path, environment={"STUB_MEMORY": str(3 << 30)}) as server:
        server.wait(lambda: server.process.poll() is not None)
        assert server.process.returncode == 3
    assert "KV cache" in server.log
    assert [path.name for path in tmp_path.rglob("torch_aot_compile/*/rank_*/model*")] == ["model"]


_INITIALIZES = """
import ctypes
ctypes.CDLL("libcuda.so.1").cuInit(0)
"""
_IN_WORKERS = """
import sys
class Finder:
    def find_spec(self, name, path=None, target=None):
        if name == "vllm.v1.worker.gpu_worker":
            sys.meta_path.remove(self)
            import initializes_cuda
sys.meta_path.insert(0, Finder())
"""


def test_a_module_that_initializes_cuda_when_it_is_imported_costs_the_fork_and_no_start(tmp_path):
    """No fork that only refuses, and none that compiles kernels, is made of the forkserver."""
    modules = tmp_path / "modules"
    modules.mkdir()
    (modules / "initializes_cuda.py").write_text(_INITIALIZES)
    (modules / "sitecustomize.py").write_text(_IN_WORKERS)
    for turn in range(3):
        for kernel in tmp_path.rglob("__grp__*.json"):
            kernel.unlink()
        with GpuServer("ours", *EAGER, folder=tmp_path, environment={"PYTHONPATH": str(modules)}) as server:
            assert server.wait_ready().generate()
            [engine] = server.titled("EngineCore")
            assert engine.pid in server.initialized()
            assert server.is_forked(engine) or turn < 1, server.log
            assert server.terminate(signal.SIGTERM) == 0
        assert "Re-initialize" not in server.log


def test_a_plugin_that_initializes_cuda_when_it_is_imported_does_so_in_the_engine(tmp_path):
    plugins = tmp_path / "plugins"
    plugins.mkdir()
    (plugins / "cuda_plugin.py").write_text(f"{_INITIALIZES}def install(): pass\n")
    write_entry_point(plugins, ModuleType("cuda_plugin"))
    with GpuServer("ours", *EAGER, folder=tmp_path, environment={"PYTHONPATH": str(plugins)}) as server:
        assert server.wait_ready().generate()
        [engine] = server.titled("EngineCore")
        assert engine.pid in server.initialized()
        assert server.is_forked(engine), server.log


_FORKS = """
import ctypes, os, subprocess
driver = ctypes.CDLL("libcuda.so.1")
def fork():
    if (pid := os.fork()) == 0:
        os._exit(0)
    os.waitpid(pid, 0)
fork()
driver.cuInit(0)
subprocess.run(["true"])
fork()
print(os.getpid())
"""


def test_the_stand_in_tells_of_each_fork_of_a_process_that_has_initialized_cuda(tmp_path):
    """All servers on the stand-in are checked by this log. Forks that execute a program are not in it."""
    pid = python_output(_FORKS, env=gpu_variables(tmp_path))
    assert forks_beside_cuda(tmp_path) == [f"(forked) {pid.strip()}"], "an old stand-in: run `make gpu-env`"


def test_no_process_that_has_initialized_cuda_is_forked_in_a_first_start_that_compiles(tmp_path):
    with GpuServer("ours", *EAGER[1:], folder=tmp_path) as server:
        assert server.wait_ready().generate()
        server.wait_logged("compiled model: compiled")
        assert server.initialized()
        assert server.terminate(signal.SIGTERM) == 0
    assert forks_beside_cuda(tmp_path) == []


_LIMITS = EAGER[1:]
_GIB = 1 << 30


class _Embedded(GpuServer):
    engine = "embedded"


@pytest.mark.ci_vllm
def test_the_engine_serves_on_the_gpu_in_two_starts(home):
    for _ in range(2):
        with _Embedded("ours", *_LIMITS, folder=home) as server:
            server.wait_ready()
            with ThreadPoolExecutor() as pool:
                assert len(set(pool.map(lambda _: server.generate(), range(8)))) == 1
            assert " on cuda:0: " in server.log
            assert len(server.initialized()) == 1
            assert server.terminate(signal.SIGTERM) == 0


@pytest.mark.parametrize("memory", [2, 3])
def test_the_kv_cache_leaves_the_rest_of_a_small_gpu(home, memory):
    with _Embedded("ours", *_LIMITS, folder=home, environment={"STUB_MEMORY": str(memory * _GIB)}) as server:
        assert server.wait_ready().generate()
        assert 0 < server.used_bytes()[0] < memory * _GIB


@pytest.mark.parametrize(
    ("arguments", "memory", "told"),
    [
        pytest.param((), 700_000_000, "the weights take 0.251 GiB, and ", id="weights"),
        pytest.param(("--gpu-memory-utilization", "0.01"), 80 * _GIB, "of KV cache and 0 GiB are free", id="KV cache"),
    ],
)
def test_a_model_without_room_is_refused(home, arguments, memory, told):
    with _Embedded("ours", *_LIMITS, *arguments, folder=home, environment={"STUB_MEMORY": str(memory)}) as server:
        assert server.process.wait(60) == 3
    (cause,) = (line for line in server.log.splitlines() if line.startswith("Cause: "))
    assert told in cause
    assert "Traceback" not in server.log


_WORDS = EAGER[1:]
_KERNELS = "*.cubin"


_OTHER_GPU = {"STUB_NAME": "NVIDIA A100-SXM4-80GB"}


@pytest.fixture(scope="module")
def location(tmp_path_factory):
    """A location to which a first start on each of two kinds of GPU has written its compiled models."""
    location = tmp_path_factory.mktemp("location")
    for number, environment in enumerate(({}, _OTHER_GPU), 1):
        home = tmp_path_factory.mktemp("first")
        arguments = (*_WORDS, "--compile-cache", str(location))
        with GpuServer("ours", *arguments, folder=home, environment=environment) as server:
            server.wait_ready()
            server.wait(lambda expected=number: len([*location.glob("[0-9]*/*.zip")]) == expected)
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


def _assert_loads(home: Path, *arguments: str, environment: dict[str, str] | None = None) -> None:
    began_s = time.time()
    with GpuServer("ours", *_WORDS, *arguments, folder=home, environment=environment) as server:
        assert server.wait_ready().generate()
        server.wait_logged("compiled model: loaded")
        assert server.terminate(signal.SIGTERM) == 0
    assert [path for path in home.rglob(_KERNELS) if path.stat().st_mtime >= began_s] == []


_AWAKE_BYTES = 60 << 30
_ASLEEP_BYTES = 2 << 30


def _adapted(server: Sleeper) -> Any:
    return server.generate(), server.generate(model="own")


def _embedding(server: Sleeper) -> Any:
    return server.post("/v1/embeddings", input=[server.PROMPT])["data"]


_RELEASES = ("--tensor-parallel-size", "3", "--sleep-mode-offload-cudagraph", "--enable-nccl-comm-suspend")
_LORA = ("--enable-lora", "--lora-modules", "own={folder}/adapter")


@pytest.mark.parametrize(
    ("arguments", "num_gpus", "ask", "levels"),
    [
        pytest.param(EAGER[1:], 1, Sleeper.generate, (1, 2), id="compiled"),
        pytest.param((*EAGER[1:], *_RELEASES), 3, Sleeper.usage, (1, 2), id="graphs and NCCL of TP 3"),
        pytest.param((*EAGER, "--pipeline-parallel-size", "2"), 2, Sleeper.usage, (1, 2), id="PP 2"),
        pytest.param((*EAGER, "--data-parallel-size", "2"), 2, Sleeper.usage, (1, 2), id="DP 2"),
        pytest.param((*EAGER, *_LORA), 1, _adapted, (1,), id="LoRA"),
        pytest.param((*EAGER, "--runner", "pooling", "--convert", "embed"), 1, _embedding, (1,), id="pooling"),
    ],
)
def test_a_model_is_after_its_sleep_as_before(tmp_path, sockets, arguments, num_gpus, ask, levels):
    arguments = tuple(argument.format(folder=tmp_path) if "{" in argument else argument for argument in arguments)
    (tmp_path / "adapter").mkdir()
    save_adapter(tmp_path / "adapter")
    with Sleeper(*arguments, folder=tmp_path, socket_folder=sockets, num_gpus=num_gpus) as server:
        expected, weights = ask(server.wait_ready()), server.weights()
        for level in levels * 2:
            awake = server.used_bytes()
            server.sleep(level)
            assert max(server.used_bytes()) < _ASLEEP_BYTES
            assert server.health() == 200
            server.wake()
            assert min(server.used_bytes()) > min(min(awake), _AWAKE_BYTES) - _ASLEEP_BYTES
            assert server.weights() == weights
            assert ask(server) == expected
        server.sleep(levels[0])
        assert server.terminate(signal.SIGTERM) == 0
    assert "EngineHangError" not in server.log
    assert "ERROR" not in server.log
