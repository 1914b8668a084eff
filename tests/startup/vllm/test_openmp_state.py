"""OpenMP's variables are parsed, and torch gets as many threads as if it were imported now."""

import json
import os
import subprocess
import sys

import pytest

from startup.vllm.fork.openmp_state import parse_cpus


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
def test_cpus_of_an_openmp_variable_are_parsed(text: str, cpus: set[int]) -> None:
    assert parse_cpus(text) == cpus


_IMPORT = "import torch; print(torch.get_num_threads())"
_FORK = """
import json, os, sys
from startup.vllm.fork import openmp_state
openmp_state.record_openmp()
import torch
changed = json.loads(sys.argv[1])
torch.get_num_threads()
if (pid := os.fork()) == 0:
    os.environ.update(changed)
    if len(sys.argv) > 2:
        os.sched_setaffinity(0, {int(sys.argv[2])})
    openmp_state.update_openmp()
    print(torch.get_num_threads(), flush=True)
    os._exit(0)
os._exit(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
"""


@pytest.mark.thorough
@pytest.mark.parametrize(
    "variables",
    [
        pytest.param({}, id="none"),
        pytest.param({"OMP_NUM_THREADS": "1"}, id="openmp"),
        pytest.param({"OMP_NUM_THREADS": "1,2"}, id="nested"),
        pytest.param({"OMP_NUM_THREADS": "1000"}, id="more_than_cores"),
        pytest.param({"OMP_NUM_THREADS": "5", "MKL_DYNAMIC": "false"}, id="unlimited"),
        pytest.param({"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "2"}, id="mkl"),
        pytest.param({"OMP_NUM_THREADS": "x"}, id="malformed"),
    ],
)
def test_fork_has_as_many_threads_as_an_import(variables: dict[str, str]) -> None:
    imported = _run(_IMPORT, env=os.environ | variables)
    assert _run(_FORK, json.dumps(variables)) == imported


@pytest.mark.thorough
def test_fork_on_one_processor_has_one_thread() -> None:
    assert _run(_FORK, "{}", str(min(os.sched_getaffinity(0)))) == "1"


def _run(script: str, *words: str, env: dict[str, str] | None = None) -> str:
    result = subprocess.run(
        [sys.executable, "-c", script, *words], capture_output=True, text=True, timeout=120, env=env
    )
    assert result.returncode == 0, result.stderr
    return result.stdout.strip()
