"""Kernels that are compiled beside the engine are plain vLLM's. No start compiles again what another has."""

import json
import os
import signal
import subprocess
from pathlib import Path

import pytest

from startup.kernels.kernel import Kernel
from startup.kernels.kernel_lists import read_traits, shipped_kernels
from startup.storage.caches import of_type
from tests.gpu_stub.gpu_server import EAGER, MODEL, PYTHON, GpuServer, forks_beside_cuda, gpu_variables
from tests.gpu_stub.recipe_models import save_llama
from tests.support.peer_vllm import ROOT

_COMPILED = EAGER[1:]
_TITLE = "vllm-cli compiles kernels"
_OF_INDUCTOR = "triton_"
"""The beginning of the names of kernels that torch generates for one model."""
_KERNEL, _LIBRARY = "*.cubin", "cuda_utils*.so"
_COMPILE = """
import sys
from pathlib import Path
from startup.kernels.compiling import CompileJob, compile_in_new_program
from startup.kernels.kernel_lists import read_traits, shipped_kernels
traits = read_traits(Path(sys.argv[1]), None)
kernels = tuple(kernel.for_model(traits) for kernel in shipped_kernels((0, 33)))
report = compile_in_new_program(CompileJob(kernels=kernels, capability=(9, 0), folder=sys.argv[2], num_processes=2))
assert report.num_compiled == len(kernels), report.problems
"""


def _kernels(folder: Path) -> dict[str, dict[str, bytes]]:
    """Key -> files of each kernel of vLLM's modules in the Triton caches below a folder.

    The list of a kernel's files is left out, because it has their paths.
    """
    found = {}
    for group in folder.rglob("__grp__*.json"):
        if not group.name.startswith(f"__grp__{_OF_INDUCTOR}"):
            files = [path for path in group.parent.iterdir() if path != group]
            found[group.parent.name] = {path.name: path.read_bytes() for path in files}
    return found


def _built(folder: Path, *patterns: str) -> set[int]:
    """What compilers have written for Triton below a folder. A file with two names counts once."""
    return {path.stat().st_ino for pattern in patterns or (_KERNEL, _LIBRARY) for path in folder.rglob(pattern)}


def _start(
    launcher: str, home: Path, arguments: tuple[str, ...], model: Path = MODEL, **variables: str
) -> dict[str, int]:
    """Starts a server and asks it once. Returns what it reports about kernels."""
    home.mkdir(exist_ok=True)
    with GpuServer(launcher, *arguments, folder=home, model=model, environment=variables) as server:
        server.wait_ready().generate()
        assert not server.titled(_TITLE), "it has outlived the start"
        reported = {} if launcher == "plain" else server.get("/startupz")["kernels"]
        server.terminate(signal.SIGTERM)
    assert "kernels are not compiled beside" not in server.log
    return dict(reported)


@pytest.mark.parametrize("arguments", [pytest.param(EAGER, id="eager"), pytest.param(_COMPILED, id="compiled")])
def test_kernels_are_those_of_plain_vllm_and_of_a_machine_without_a_gpu(tmp_path, arguments):
    _start("plain", tmp_path / "plain", arguments)
    plain = _kernels(tmp_path / "plain")
    reported = _start("ours", tmp_path / "ours", arguments)
    ours = _kernels(tmp_path / "ours")
    assert len(plain) >= reported["used"] > 0
    assert {key: ours.get(key) for key in plain} == plain
    run = [PYTHON, "-c", _COMPILE, MODEL, tmp_path / "beside"]
    subprocess.run(run, cwd=ROOT, check=True, env={**os.environ, "HOME": str(tmp_path)}, timeout=600)
    beside = _kernels(tmp_path / "beside")
    assert {key: beside.get(key) for key in plain} == plain, "the list lacks a kernel, or compiles it differently"


_COMPILE_BESIDE_CUDA = """
import ctypes, sys
from pathlib import Path
from startup.kernels.compiling import CompileJob, run_job
from startup.kernels.kernel_lists import read_traits, shipped_kernels
ctypes.CDLL("libcuda.so.1").cuInit(0)
traits = read_traits(Path(sys.argv[1]), None)
kernels = tuple(kernel.for_model(traits) for kernel in shipped_kernels((0, 33))[:2])
report = run_job(CompileJob(kernels=kernels, capability=(9, 0), folder=sys.argv[2], num_processes=2))
assert report.num_compiled == len(kernels), report.problems
"""


def test_kernels_are_compiled_without_forks_if_their_modules_have_initialized_cuda(tmp_path):
    run = [PYTHON, "-c", _COMPILE_BESIDE_CUDA, MODEL, tmp_path / "kernels"]
    subprocess.run(run, cwd=ROOT, check=True, env=gpu_variables(tmp_path), timeout=600)
    assert len(_kernels(tmp_path)) == 2
    assert forks_beside_cuda(tmp_path) == []


@pytest.mark.parametrize("arguments", [pytest.param(EAGER, id="eager"), pytest.param(_COMPILED, id="compiled")])
def test_a_second_model_finds_the_kernels_of_the_first(tmp_path, arguments):
    model = tmp_path / "llama"
    model.mkdir()
    save_llama(model)
    _start("ours", tmp_path / "home", arguments)
    before = _kernels(tmp_path / "home")
    reported = _start("ours", tmp_path / "home", arguments, model)
    assert reported["used"] > 0
    assert reported["compiled_by_engine"] == 0
    assert _kernels(tmp_path / "home").keys() == before.keys()


@pytest.mark.parametrize(
    ("launcher", "arguments"),
    [
        pytest.param("ours", EAGER, id="eager"),
        pytest.param("ours", _COMPILED, id="compiled"),
        pytest.param("plain", _COMPILED, id="compiled by plain vLLM"),
    ],
)
def test_a_new_pod_with_a_volume_on_vllms_cache_folder_compiles_nothing(tmp_path, launcher, arguments):
    """Plain vLLM's first start puts kernels into the compiled model's folder, and the library elsewhere."""
    volume = tmp_path / "volume"
    _start(launcher, tmp_path / "first", arguments, VLLM_CACHE_ROOT=str(volume))
    kernels, libraries = _built(tmp_path, _KERNEL), _built(tmp_path, _LIBRARY)
    for pod in ("second", "third"):
        reported = _start("ours", tmp_path / pod, arguments, VLLM_CACHE_ROOT=str(volume))
        assert (reported["used"] > 0, reported["compiled_by_engine"]) == (True, 0)
        assert _built(tmp_path, _KERNEL) == kernels, f"the {pod} pod has compiled"
        if launcher == "plain" and pod == "second":
            libraries = _built(tmp_path, _LIBRARY)
        assert _built(tmp_path, _LIBRARY) == libraries, f"the {pod} pod has compiled the library"


def test_plain_vllm_finds_the_kernels_of_our_starts(tmp_path):
    _start("ours", tmp_path, EAGER)
    before = _built(tmp_path)
    _start("plain", tmp_path, EAGER)
    assert _built(tmp_path) == before != set()


def test_the_list_fits_a_model_with_another_vocabulary_and_type(tmp_path):
    """16 divides neither the size of the vocabulary, nor that of its masks, nor its number of blocks."""
    model, home = tmp_path / "llama", tmp_path / "home"
    model.mkdir()
    save_llama(model, 49157)
    _start("ours", home, (*EAGER, "--dtype", "float16"), model)
    (file,) = (home / "cache" / "vllm_cli" / "kernels").glob("*.json")
    traits = read_traits(model, "float16")
    used = of_type(list[Kernel])(json.loads(file.read_bytes())["value"]["kernels"])
    known = {kernel.for_model(traits) for kernel in shipped_kernels((0, 33))}
    assert {kernel.for_model(traits) for kernel in used} <= known


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_nothing_is_left_of_a_start_that_ends_while_other_processes_compile_for_it(tmp_path, number):
    with GpuServer("ours", *EAGER, folder=tmp_path) as server:
        server.wait(lambda: server.titled(_TITLE))
        server.terminate(number)


def test_on_one_processor_the_engine_compiles_its_kernels(tmp_path):
    processors = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(processors)})
    try:
        reported = _start("ours", tmp_path, EAGER)
    finally:
        os.sched_setaffinity(0, processors)
    assert reported["compiled_by_engine"] == reported["used"] > 0
