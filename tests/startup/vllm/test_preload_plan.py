"""The forkserver's plan of imports and its environment."""

from dataclasses import replace
from pathlib import Path

import pytest

from startup.vllm.fork.forkserver_start import forkserver_environment
from startup.vllm.fork.preload_profile import COMPILER, PreloadPlan, PreloadProfile, StartKind, plan_preload
from startup.vllm.installed import InstalledVllm

_CPU = InstalledVllm("0.32.0+cpu", Path("/nowhere/vllm"))
_GPU = InstalledVllm("0.32.0", Path("/nowhere/vllm"))


def _profile(vllm: InstalledVllm = _CPU, *modules: str) -> PreloadProfile:
    return PreloadProfile(StartKind.of(vllm, (), None), engine_modules=modules)


def _plan(words: str = "", vllm: InstalledVllm = _CPU, *modules: str, model: Path | None = None) -> PreloadPlan:
    return plan_preload(Path("/folder"), vllm, words.split(), _profile(vllm, *modules), model)


def test_a_first_start_preloads_engine_and_worker_of_its_platform() -> None:
    assert "vllm.v1.worker.cpu_worker" in _plan(vllm=_CPU).modules
    assert "vllm.v1.worker.gpu_worker" in _plan(vllm=_GPU).modules
    assert "vllm.v1.worker.cpu_worker" not in _plan(vllm=_GPU).modules
    assert "vllm.v1.engine.core" in _plan().modules


@pytest.mark.parametrize("word", ["--api-server-count=2", "--api_server_count 2", "-asc 2"])
def test_several_api_servers_are_preloaded_too(word: str) -> None:
    assert "vllm.entrypoints.cli.serve" in _plan(word).modules
    assert "vllm.entrypoints.cli.serve" not in _plan().modules


def test_the_profiles_modules_come_in_order_and_once() -> None:
    modules = _plan("", _CPU, "b", "vllm.v1.engine.core", "a").modules
    assert modules[-2:] == ("b", "a")
    assert len(set(modules)) == len(modules)


def test_the_models_class_is_preloaded_without_a_profile() -> None:
    assert _plan(model=Path("/model")).model == "/model"
    assert _plan("", _CPU, "a", model=Path("/model")).model is None


@pytest.mark.parametrize(
    ("words", "vllm", "modules", "compiler"),
    [
        ("", _CPU, (), "now"),
        ("--enforce-eager", _CPU, (), "deferred"),
        ("--enforce_eager", _CPU, ("a",), "deferred"),
        ("--enforce-eager", _GPU, (), "late"),
        ("--enforce-eager", _CPU, (COMPILER,), "now"),
    ],
    ids=["compiles", "eager", "eager-and-learnt", "eager-on-gpu", "eager-and-needed"],
)
def test_the_compiler_is_delayed_in_starts_that_compile_nothing(
    words: str, vllm: InstalledVllm, modules: tuple[str, ...], compiler: str
) -> None:
    assert _plan(words, vllm, *modules).compiler == compiler


def test_a_written_plan_is_read_unchanged(tmp_path: Path) -> None:
    plan = replace(_plan("", _CPU, "a"), folder=str(tmp_path))
    assert PreloadPlan.read(plan.write()) == plan


def test_the_forkserver_gets_vllms_variables_but_not_over_the_users_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCH_SET", "by the user")
    profile = replace(_profile(), environment={"TORCH_SET": "by vLLM", "TORCH_OTHER": "by vLLM"})
    environment = forkserver_environment(_CPU, profile)
    assert environment["TORCH_OTHER"] == "by vLLM"
    assert environment["TORCHINDUCTOR_COMPILE_THREADS"] == "1"
    assert "TORCH_SET" not in environment


def test_ld_preload_has_vllms_libraries_in_its_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("LD_PRELOAD", raising=False)
    for path in ("torch.libs/libgomp-1.so.1", "vllm/libs/libtcmalloc_minimal.so.4"):
        (tmp_path / path).parent.mkdir(parents=True)
        (tmp_path / path).touch()
    vllm = InstalledVllm("0.32.0+cpu", tmp_path / "vllm")
    expected = f"{tmp_path}/vllm/libs/libtcmalloc_minimal.so.4:{tmp_path}/torch.libs/libgomp-1.so.1"
    assert forkserver_environment(vllm, _profile())["LD_PRELOAD"] == expected
    monkeypatch.setenv("LD_PRELOAD", "/my/libomp.so:/my/libtcmalloc.so")
    assert forkserver_environment(vllm, _profile())["LD_PRELOAD"] == "/my/libomp.so:/my/libtcmalloc.so"
    assert "LD_PRELOAD" not in forkserver_environment(_GPU, _profile(_GPU))
