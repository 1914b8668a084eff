"""OpenMP's variables are parsed, and torch gets as many threads as after an import at this moment."""

import json
import os

import pytest

from startup.vllm.fork.openmp_state import parse_cpus
from tests.support.cli import python_output


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


def _run(script: str, *words: str, env: dict[str, str] | None = None) -> str:
    return python_output(script, *words, environment=env).strip()
