"""Modules that a start imports late are preloaded in the next start. Profiles can be shown and deleted."""

import json
from pathlib import Path
from typing import Any

import pytest

from tests.startup.vllm.fake_start import ROOT, FakeStart, environment
from tests.support.cli import run_cli
from tests.support.waiting import wait_until

_LATE = "vllm.lazy"
_WORDS = ("--worker-imports", _LATE)


def _profiles(folder: Path) -> list[Path]:
    return sorted((folder / "cache" / "vllm_cli" / "preload").glob("*.json"))


def _profile(folder: Path) -> dict[str, Any]:
    (path,) = _profiles(folder)
    return json.loads(path.read_text())["value"]


def _importer(folder: Path, *, num_starts: int) -> str:
    """The process that imported the late module. Returns once the start's profile is saved."""
    with FakeStart(folder, *_WORDS) as start:
        (worker,) = start.wait_ready().state()["workers"]
        wait_until(lambda: _profiles(folder) and _profile(folder)["num_starts"] == num_starts)
        (forkserver,) = start.forkservers()
    return {worker["pid"]: "worker", forkserver.pid: "forkserver"}[worker["imported_in"][_LATE]]


def _caches(folder: Path, *words: str) -> str:
    done = run_cli("caches", *words, env=environment(folder), cwd=ROOT)
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
