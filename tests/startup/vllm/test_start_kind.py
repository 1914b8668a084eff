"""Kinds of start: what is kept for each, and what is preloaded."""

import importlib
import json
import os
import platform
import time
from dataclasses import replace
from pathlib import Path

import pytest

from startup.vllm.fork.forkserver import forkserver_environment
from startup.vllm.fork.preload_plan import BEFORE_OTHERS_CODE, PreloadPlan, plan_preload
from startup.vllm.journal import Journal, StartRecordings
from startup.vllm.launch.plain_state import disable_preloading, forget_failure, plain_state, plain_states
from startup.vllm.start_kind import EarlierStart, StartKind, earlier_start, earlier_starts, has_started_here
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


def test_the_latest_start_of_a_kind_is_kept():
    kind = StartKind.of(_VLLM, ("-tp", "2"), None)
    assert (earlier_start(kind), has_started_here(kind)) == (None, False)
    for model in (None, "/model"):
        EarlierStart(kind, model).save()
        assert (earlier_start(kind), has_started_here(kind)) == (EarlierStart(kind, model), True)
    assert earlier_start(replace(kind, version="other")) is None


def test_a_kind_of_start_contains_no_secret():
    arguments = ("--kv-transfer-config", '{"kv_connector_extra_config": {"access_key": "sesame"}}')
    dotted = ("--kv-transfer-config.kv_connector_extra_config.access_key", "sesame", "-tp", "2")
    for given in (arguments, dotted):
        assert "sesame" not in str(StartKind.of(_VLLM, VllmLine.of(given).flags_of_modules, None))


def test_the_latest_starts_of_all_kinds_are_listed(cache):
    kinds = [StartKind.of(_VLLM, arguments, None) for arguments in ((), ("-tp", "2"))]
    for kind in kinds:
        EarlierStart(kind).save()
    (cache / "vllm_cli" / "starts" / "nonsense.json").write_text("{")
    assert {start.kind for start in earlier_starts()} == set(kinds)


def test_a_journal_records_modules_and_spans(tmp_path, toys):
    toys.write("toy_of_a_phase")
    journal = Journal(tmp_path)
    journal.mark_loaded_modules()
    with journal.span("a phase"):
        importlib.import_module("toy_of_a_phase")
    journal.is_open = False
    with journal.span("too late"):
        pass
    (path,) = tmp_path.glob("*.jsonl")
    with path.open("a") as file:
        file.write('{"cut off')
    recordings = StartRecordings.read(tmp_path)
    assert [span.name for span in recordings.spans] == ["a phase"]
    assert recordings.modules == {"MainProcess": ["toy_of_a_phase"]}
    with Journal(tmp_path / "gone").span("a phase"):
        pass
    assert StartRecordings.read(tmp_path / "gone").spans == []


def _plan(arguments: str = "", vllm: InstalledVllm = _CPU, *, in_order: bool = False) -> PreloadPlan:
    return plan_preload(Path("/folder"), vllm, VllmLine.of(arguments.split()), in_order=in_order)


_SERVE, _BACKEND, _WORKER = "vllm.entrypoints.cli.serve", "vllm.compilation.backends", "vllm.v1.worker.cpu_worker"


@pytest.mark.parametrize(
    ("arguments", "vllm", "has", "lacks", "compiler"),
    [
        ("", _CPU, ("vllm.v1.engine.core", _WORKER, _BACKEND), (_SERVE,), "now"),
        ("", _GPU, ("vllm.v1.worker.gpu_worker", "vllm.v1.worker.gpu.model_runner"), (_WORKER,), "now"),
        *(
            (arguments, _CPU, (_SERVE,), (), "now")
            for arguments in ("--api-server-count=2", "--api_server_count 2", "-asc 2")
        ),
        ("--enforce-eager", _CPU, (_WORKER,), (_BACKEND,), "deferred"),
        ("--enforce_eager", _CPU, (_WORKER,), (_BACKEND,), "deferred"),
        ("--enforce-eager", _GPU, (), (_BACKEND,), "deferred"),
    ],
)
def test_a_plan_has_what_platform_and_arguments_need(arguments, vllm, has, lacks, compiler):
    plan = _plan(arguments, vllm)
    assert ({*has} - {*plan.modules}, {*lacks} & {*plan.modules}) == (set(), set())
    assert (plan.compiler, plan.is_lean) == (compiler, True)
    assert len(set(plan.modules)) == len(plan.modules)


def test_a_plan_has_the_models_class(tiny_llama):
    assert _plan(str(tiny_llama)).model == str(tiny_llama)


def test_a_plan_for_code_of_others_has_nothing_that_it_could_change(tiny_llama):
    plan = _plan(f"{tiny_llama} --api-server-count 2", in_order=True)
    assert (plan.modules, plan.model, plan.is_lean) == (BEFORE_OTHERS_CODE, None, False)


def test_a_written_plan_is_read_unchanged(tmp_path):
    plan = replace(_plan(), folder=str(tmp_path))
    assert PreloadPlan.read(plan.write()) == plan


def test_the_forkserver_gets_the_variables_of_vllms_children():
    assert forkserver_environment(_CPU)["TORCHINDUCTOR_COMPILE_THREADS"] == "1"
    assert "TORCHINDUCTOR_COMPILE_THREADS" not in forkserver_environment(_GPU)


def test_ld_preload_has_vllms_libraries_in_its_order(tmp_path, monkeypatch):
    monkeypatch.delenv("LD_PRELOAD", raising=False)
    for path in ("torch.libs/libgomp-1.so.1", "vllm/libs/libtcmalloc_minimal.so.4"):
        (tmp_path / path).parent.mkdir(parents=True)
        (tmp_path / path).touch()
    vllm = InstalledVllm("0.32.0+cpu", tmp_path / "vllm")
    expected = f"{tmp_path}/vllm/libs/libtcmalloc_minimal.so.4:{tmp_path}/torch.libs/libgomp-1.so.1"
    assert forkserver_environment(vllm)["LD_PRELOAD"] == expected
    monkeypatch.setenv("LD_PRELOAD", "/my/libomp.so:/my/libtcmalloc.so")
    assert forkserver_environment(vllm)["LD_PRELOAD"] == "/my/libomp.so:/my/libtcmalloc.so"
    assert "LD_PRELOAD" not in forkserver_environment(_GPU)


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
    disable_preloading(kind, "KeyError: 'a'")
    assert plain_state(kind) is not None
    assert plain_state(StartKind.of(_VLLM, ("-tp", "2"), None)) is None
    monkeypatch.setattr(platform, "node", lambda: "another")
    assert plain_state(kind) is None
    assert [state.reason for state in plain_states()] == ["KeyError: 'a'"]
