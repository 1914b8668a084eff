"""Modules that a start imports late are preloaded in the next one. Forks have an import's OpenMP threads."""

import json
import os
from pathlib import Path
from typing import Any

import pytest

from startup.vllm.fork.openmp_state import parse_cpus
from tests.startup.vllm.fake_start import ROOT, FakeStart, environment
from tests.support.cli import python_output, run_cli
from tests.support.waiting import wait_until

_LATE = "vllm.lazy"
_WORDS = ("--worker-imports", _LATE)


def _profiles(folder: Path) -> list[Path]:
    return sorted((folder / "cache" / "vllm_cli" / "preload").glob("*.json"))


def _profile(folder: Path) -> dict[str, Any]:
    (path,) = _profiles(folder)
    return json.loads(path.read_text())["value"]


def _importer(folder: Path, *, num_starts: int) -> str:
    """The process that imported the late module. Returns once profile and import file are saved."""
    with FakeStart(folder, *_WORDS) as start:
        (worker,) = start.wait_ready().state()["workers"]
        wait_until(lambda: _profiles(folder) and _profile(folder)["num_starts"] == num_starts)
        wait_until(lambda: [*(folder / "cache" / "vllm_cli" / "imports").glob("*.code")])  # written last
        (forkserver,) = start.forkservers()
    return {worker["pid"]: "worker", forkserver.pid: "forkserver"}[worker["imported_in"][_LATE]]


def _caches(folder: Path, *arguments: str) -> str:
    done = run_cli("caches", *arguments, env=environment(folder), cwd=ROOT)
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


@pytest.mark.thorough
def test_the_second_start_preloads_what_the_first_imported_late_and_drops_what_is_missing(folder):
    assert _importer(folder, num_starts=1) == "worker"
    profile = _profile(folder)
    assert _LATE in profile["engine_modules"]
    profile["engine_modules"][0:0] = ["vllm.is_not_there_any_more"]
    (path,) = _profiles(folder)
    path.write_text(json.dumps({**json.loads(path.read_text()), "value": profile}))
    assert _importer(folder, num_starts=2) == "forkserver"
    assert _LATE in _profile(folder)["engine_modules"]
    assert "vllm.is_not_there_any_more" not in _profile(folder)["engine_modules"]
    assert "ModuleNotFoundError" in _profile(folder)["failed"]["vllm.is_not_there_any_more"]

    assert "preload profiles" in _caches(folder)
    assert "import file" in _caches(folder, "prune", "--all")
    assert _profiles(folder) == []
    assert "preload profiles" not in _caches(folder)


@pytest.mark.thorough
def test_the_first_start_preloads_the_models_class_and_inspects_it_without_a_new_program(model, folder):
    name = "vllm.model_executor.models.fake_llama"
    with FakeStart(folder, model) as start:
        state = start.wait_ready().state()
        (forkserver,) = start.forkservers()
    (worker,) = state["workers"]
    assert worker["imported_in"][name] == forkserver.pid
    inspected, _, parent = state["engine"]["inspected"]
    assert (inspected, parent) == (name, forkserver.pid), "in a fork"
    inspected, _, parent = worker["inspected"]
    assert (inspected, parent) == (name, worker["pid"]), "in itself"


@pytest.mark.parametrize(
    ("text", "cpus"),
    [
        ("0", {0}),
        ("0 2-5", {0, 2, 3, 4, 5}),
        ("0,3", {0, 3}),
        ("{0,1}", {0, 1}),
        ("{4},{6},{8}", {4, 6, 8}),
        ("granularity=fine,explicit,proclist=[0,1]", {0, 1}),
        ("granularity=fine,explicit,proclist=[2-4,7]", {2, 3, 4, 7}),
        ("", set()),
        ("cores", set()),
        ("compact", set()),
        ("granularity=fine,compact,1,0", set()),
        ("false", set()),
    ],
)
def test_cpus_of_an_openmp_variable_are_parsed(text, cpus):
    assert parse_cpus(text) == cpus


_FORKS = """
import json, os, sys
from startup.vllm.fork import openmp_state
openmp_state.record_openmp()
import torch
torch.get_num_threads()
for changed in (*json.loads(sys.argv[1]), None):
    if (pid := os.fork()) == 0:
        if changed is None:
            os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
        os.environ.update(changed or {})
        openmp_state.update_openmp()
        print(torch.get_num_threads(), flush=True)
        os._exit(0)
    assert os.waitpid(pid, 0)[1] == 0
"""
_VARIABLES: list[dict[str, str]] = [
    {},
    {"OMP_NUM_THREADS": "1"},
    {"OMP_NUM_THREADS": "1,2"},
    {"OMP_NUM_THREADS": "1000"},
    {"OMP_NUM_THREADS": "5", "MKL_DYNAMIC": "false"},
    {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "2"},
    {"OMP_NUM_THREADS": "x"},
]


@pytest.mark.slow
def test_forks_have_as_many_threads_as_an_import_and_one_on_one_processor():
    code = "import torch; print(torch.get_num_threads())"
    imported = [_run(code, env=os.environ | variables) for variables in _VARIABLES]
    assert _run(_FORKS, json.dumps(_VARIABLES)).splitlines() == [*imported, "1"]


def _run(script: str, *arguments: str, env: dict[str, str] | None = None) -> str:
    return python_output(script, *arguments, environment=env).strip()
