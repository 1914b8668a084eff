"""What a forkserver imports, and when it does not because of others' code. Forks have OpenMP's threads."""

import json
import os

import pytest

from startup.vllm.fork.openmp_state import parse_cpus
from tests.startup.vllm.fake_start import FAKE, ROOT, FakeStart, environment
from tests.support.cli import python_output


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


_IN_ORDER = (
    pytest.param(True, {}, (), id="plugin"),
    pytest.param(True, {"VLLM_PLUGINS": "other"}, (), id="plugin that is not allowed"),
    pytest.param(False, {}, ("--worker-cls", "own.Worker"), id="class"),
    pytest.param(False, {}, ("--worker_cls=own.Worker",), id="class with another spelling"),
)


@pytest.mark.thorough
@pytest.mark.parametrize(("has_plugin", "variables", "arguments"), _IN_ORDER)
def test_engines_import_after_the_code_of_others(has_plugin, variables, arguments, model, folder):
    if has_plugin:
        metadata = folder / "own-1.0.dist-info"
        metadata.mkdir()
        (metadata / "entry_points.txt").write_text("[vllm.general_plugins]\nown = own.plugin:register\n")
    path = f"{FAKE}:{ROOT}:{folder}"
    for _ in range(2):  # the second start has a record of vLLM's flags
        with FakeStart(folder, model, *arguments, env=environment(folder, PYTHONPATH=path, **variables)) as start:
            state = start.wait_ready().state()
            (forkserver,) = start.forkservers()
            start.wait_logged("ready after")
        (worker,) = state["workers"]
        is_allowed = "VLLM_PLUGINS" not in variables
        importer = worker["pid"] if is_allowed else forkserver.pid
        assert worker["imported_in"]["vllm.model_executor.models.fake_llama"] == importer
        assert ("import vLLM after " in start.log) == is_allowed


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
