"""Starts of one kind share a profile, which each start extends. The preload plan is made from it."""

import importlib
import json
import os
import platform
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

from startup.vllm.fork.forkserver import forkserver_environment
from startup.vllm.fork.preload_profile import (
    COMPILER,
    PreloadPlan,
    PreloadProfile,
    StartKind,
    disable_preloading,
    forget_failure,
    load_all_profiles,
    load_profile,
    plain_state,
    plain_states,
    plan_preload,
)
from startup.vllm.journal import Journal, StartRecordings
from startup.vllm_arguments.installed import InstalledVllm
from startup.vllm_arguments.vllm_line import VllmLine

_VLLM = InstalledVllm("0.32.0", Path("/nowhere"))

_CPU = InstalledVllm("0.32.0+cpu", Path("/nowhere/vllm"))
_GPU = InstalledVllm("0.32.0", Path("/nowhere/vllm"))


def _key(arguments: str, *, vllm: InstalledVllm = _VLLM, model: Path | None = None) -> str:
    return StartKind.of(vllm, VllmLine.of(arguments.split()).flags_of_modules, model).key


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("VLLM_CACHE_ROOT", str(tmp_path))
    return tmp_path


@pytest.mark.parametrize(
    ("arguments", "is_same"),
    [
        ("m --enforce-eager --dtype bfloat16", True),
        ("m --enforce_eager --dtype=bfloat16", True),
        ("m --port 1 --enforce-eager --host=h --dtype bfloat16 --max-model-len 10", True),
        ("--enforce-eager another/model --dtype=bfloat16 word", True),
        *(
            (arguments, False)
            for arguments in ("", "--enforce-eager", "--dtype float16 --enforce-eager", "-tp 2", "-O3")
        ),
        ("--tensor-parallel-size=4", False),
    ],
)
def test_a_kind_of_start_depends_on_flags_that_change_imports_however_they_are_written(arguments, is_same):
    assert (_key(arguments) == _key("--enforce-eager --dtype bfloat16")) == is_same


def test_kind_depends_on_version_and_architecture(tmp_path):
    def model(architecture: str) -> Path:
        folder = tmp_path / architecture
        folder.mkdir()
        (folder / "config.json").write_text(json.dumps({"architectures": [architecture]}))
        return folder

    llama, qwen = model("Llama"), model("Qwen")
    keys = {_key(""), _key("", model=llama), _key("", model=qwen), _key("", vllm=InstalledVllm("0.31", Path("/")))}
    assert len(keys) == 4


def test_new_modules_come_after_the_known_ones():
    profile = PreloadProfile(StartKind.of(_VLLM, (), None), engine_modules=("a", "b"), api_modules=("x",))
    recordings = StartRecordings(
        modules={"EngineCore": ["b", "c"], "VllmWorker-0": ["d", "c"], "MainProcess": ["y", "x"], "ApiServer_1": ["z"]},
        environment={"TORCH_X": "1", "TORCH_GONE": ""},
        failed={"b": "ImportError: b"},
    )
    after = profile.updated_with(recordings)
    assert after.engine_modules == ("a", "c", "d")
    assert after.api_modules == ("x", "y", "z")
    assert after.environment == {"TORCH_X": "1"}
    assert after.failed == {"b": "ImportError: b"}
    assert after.num_starts == 1
    assert "b" not in after.updated_with(StartRecordings(modules={"EngineCore": ["b"]})).engine_modules


def test_modules_of_engines_that_have_compiled_are_not_preloaded_in_later_starts():
    profile = PreloadProfile(StartKind.of(_VLLM, (), None), engine_modules=("a",))
    recordings = StartRecordings(modules={"EngineCore": ["b"], "MainProcess": ["x"]})
    after = profile.updated_with(recordings, has_compiled=True)
    assert (after.engine_modules, after.api_modules, after.num_starts) == (("a",), ("x",), 1)
    assert after.updated_with(recordings).engine_modules == ("a", "b")


def test_a_saved_profile_is_loaded_unchanged():
    kind = StartKind.of(_VLLM, ("-tp", "2"), None)
    profile = PreloadProfile(
        kind, ("a",), ("b",), {"TORCH_X": "1"}, {"c": "no"}, time.time(), 3, "/model", is_complete=False
    )
    profile.save()
    assert load_profile(kind) == profile
    assert load_profile(replace(kind, version="other")) == PreloadProfile(replace(kind, version="other"))


def test_a_kind_of_start_contains_no_secret():
    arguments = ("--kv-transfer-config", '{"kv_connector_extra_config": {"access_key": "sesame"}}')
    dotted = ("--kv-transfer-config.kv_connector_extra_config.access_key", "sesame", "-tp", "2")
    for given in (arguments, dotted):
        assert "sesame" not in str(StartKind.of(_VLLM, VllmLine.of(given).flags_of_modules, None))


def test_all_profiles_are_loaded(cache):
    kinds = [StartKind.of(_VLLM, arguments, None) for arguments in ((), ("-tp", "2"))]
    for kind in kinds:
        PreloadProfile(kind, num_starts=1).save()
    (cache / "vllm_cli" / "preload" / "nonsense.json").write_text("{")
    assert {profile.kind for profile in load_all_profiles()} == set(kinds)


def test_a_journal_records_modules_spans_and_no_secrets(tmp_path, toys):
    toys.write("toy_of_a_phase")
    journal = Journal(tmp_path)
    journal.mark_loaded_modules()
    with journal.span("a phase"):
        importlib.import_module("toy_of_a_phase")
    journal.record_environment({"TORCH_X": "1", "HF_TOKEN": "secret", "TORCH_HUB_TOKEN": "secret"})
    journal.is_open = False
    with journal.span("too late"):
        pass
    (path,) = tmp_path.glob("*.jsonl")
    with path.open("a") as file:
        file.write('{"cut off')
    recordings = StartRecordings.read(tmp_path)
    assert [span.name for span in recordings.spans] == ["a phase"]
    assert recordings.modules == {"MainProcess": ["toy_of_a_phase"]}
    assert recordings.environment == {"TORCH_X": "1"}
    with Journal(tmp_path / "gone").span("a phase"):
        pass
    assert StartRecordings.read(tmp_path / "gone").spans == []


def _profile(vllm: InstalledVllm = _CPU, *modules: str) -> PreloadProfile:
    return PreloadProfile(StartKind.of(vllm, (), None), engine_modules=modules)


def _plan(arguments: str = "", vllm: InstalledVllm = _CPU, *modules: str, model: Path | None = None) -> PreloadPlan:
    return plan_preload(Path("/folder"), vllm, VllmLine.of(arguments.split()), _profile(vllm, *modules), model)


_SERVE, _BACKEND, _WORKER = "vllm.entrypoints.cli.serve", "vllm.compilation.backends", "vllm.v1.worker.cpu_worker"


@pytest.mark.parametrize(
    ("arguments", "vllm", "known", "has", "lacks", "compiler"),
    [
        ("", _CPU, (), ("vllm.v1.engine.core", _WORKER, _BACKEND), (_SERVE,), "now"),
        ("", _GPU, (), ("vllm.v1.worker.gpu_worker", "vllm.v1.worker.gpu.model_runner"), (_WORKER,), "now"),
        *(
            (arguments, _CPU, (), (_SERVE,), (), "now")
            for arguments in ("--api-server-count=2", "--api_server_count 2", "-asc 2")
        ),
        ("", _CPU, ("a",), ("a", _BACKEND), (), "now"),
        ("--enforce-eager", _CPU, (), (_WORKER,), (_BACKEND,), "deferred"),
        ("--enforce_eager", _CPU, ("a",), ("a",), (_BACKEND,), "deferred"),
        ("--enforce-eager", _GPU, (), (), (_BACKEND,), "deferred"),
        ("--enforce-eager", _CPU, (COMPILER,), (), (), "now"),
    ],
)
def test_a_plan_has_what_platform_words_and_profile_need(arguments, vllm, known, has, lacks, compiler):
    """Without a profile, the model's class is preloaded, too."""
    plan = _plan(arguments, vllm, *known, model=Path("/model"))
    assert ({*has} - {*plan.modules}, {*lacks} & {*plan.modules}) == (set(), set())
    assert (plan.compiler, plan.model) == (compiler, None if known else "/model")


def test_the_profiles_modules_come_in_order_and_once():
    modules = _plan("", _CPU, "b", "vllm.v1.engine.core", "a").modules
    assert modules[-2:] == ("b", "a")
    assert len(set(modules)) == len(modules)


@pytest.mark.parametrize(
    ("name", "value", "recorded"),
    [
        ("TORCHINDUCTOR_CACHE_DIR", "/tmp/torchinductor_ann", None),
        ("TRITON_CACHE_DIR", "/home/ann/.triton", None),
        ("TRITON_HOME", "/home/ann", None),
        ("TORCH_HOME", "~/torch", None),
        ("TORCH_EXTENSIONS_DIR", "relative/folder", None),
        ("NUMEXPR_MAX_THREADS", "2", None),
        ("TORCHINDUCTOR_COMPILE_THREADS", "64", None),
        ("LD_PRELOAD", "/home/ann/libmine.so", None),
        ("LD_PRELOAD", f"/home/ann/libmine.so:{sys.prefix}/lib/libiomp5.so", f"{sys.prefix}/lib/libiomp5.so"),
        ("PYTORCH_ALLOC_CONF", "expandable_segments:True", "expandable_segments:True"),
        ("TORCH_GONE", "", ""),
    ],
)
def test_a_journal_records_only_values_that_hold_for_other_users_and_machines(name, value, recorded, tmp_path):
    Journal(tmp_path).record_environment({name: value})
    assert StartRecordings.read(tmp_path).environment.get(name) == recorded


def test_a_written_plan_is_read_unchanged(tmp_path):
    plan = replace(_plan("", _CPU, "a"), folder=str(tmp_path))
    assert PreloadPlan.read(plan.write()) == plan


def test_the_forkserver_gets_vllms_variables_but_not_over_the_users_own(monkeypatch):
    monkeypatch.setenv("TORCH_SET", "by the user")
    profile = replace(_profile(), environment={"TORCH_SET": "by vLLM", "TORCH_OTHER": "by vLLM"})
    environment = forkserver_environment(_CPU, profile)
    assert environment["TORCH_OTHER"] == "by vLLM"
    assert environment["TORCHINDUCTOR_COMPILE_THREADS"] == "1"
    assert "TORCH_SET" not in environment


def test_ld_preload_has_vllms_libraries_in_its_order(tmp_path, monkeypatch):
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
    learned = replace(_profile(_GPU), environment={"LD_PRELOAD": f"{sys.prefix}/lib/libiomp5.so"})
    both = f"/my/libomp.so:/my/libtcmalloc.so:{sys.prefix}/lib/libiomp5.so"
    assert forkserver_environment(_GPU, learned)["LD_PRELOAD"] == both


def test_a_failure_of_ours_is_remembered_for_an_hour_then_for_a_day_and_not_after_a_success(cache, monkeypatch):
    kind, now = StartKind.of(_VLLM, (), None), 1_795_000_000.0
    monkeypatch.setattr(time, "time", lambda: now)
    for hours in (1, 24, 24):
        state = disable_preloading(kind, "KeyError: 'a'")
        assert state.end_s == now + hours * 3600
        (path,) = (cache / "vllm_cli" / "plain").iterdir()
        os.utime(path, (now, now))
        now = state.end_s - 1
        assert plain_state(kind) == state
        now = state.end_s + 1
        assert (plain_state(kind), plain_states()) == (None, [])
    forget_failure(kind)
    state = disable_preloading(kind, "KeyError: 'a'")
    assert state.end_s == now + 3600
    assert str(state).startswith("KeyError: 'a'; it preloads again from 2026-")
    assert str(state).endswith(" UTC on, or after `vllm-cli caches prune --plain-starts`")


def test_a_failure_concerns_one_kind_of_start_on_one_host(monkeypatch):
    kind = StartKind.of(_VLLM, (), None)
    PreloadProfile(kind, ("a",)).save()
    disable_preloading(kind, "KeyError: 'a'")
    assert plain_state(kind) is not None
    assert load_profile(kind) == PreloadProfile(kind), "it is learned anew"
    assert plain_state(StartKind.of(_VLLM, ("-tp", "2"), None)) is None
    monkeypatch.setattr(platform, "node", lambda: "another")
    assert plain_state(kind) is None
    assert [state.reason for state in plain_states()] == ["KeyError: 'a'"]


def test_a_module_that_could_not_be_preloaded_is_tried_again_on_another_day(monkeypatch):
    kind = StartKind.of(_VLLM, (), None)
    failed = PreloadProfile(kind, ("a",)).updated_with(StartRecordings(failed={"b": "ImportError: b"}))
    failed.save()
    assert load_profile(kind) == failed
    replace(failed, failed_s=failed.failed_s - 86401).save()
    assert load_profile(kind).failed == {}
