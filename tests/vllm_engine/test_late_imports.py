"""What is read or imported late is the same as in plain vLLM: operators of torch, kernels of Triton."""

import json
import os
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from tests.gpu_stub import gpu_server
from tests.support.peer_vllm import PYTHON, ROOT

_HERE = Path(__file__).parent
_OF_CUDA = pytest.mark.skipif(not gpu_server.PYTHON.exists(), reason="the CUDA build is not installed: make gpu-env")


def _run(python: Path, *words: object, environment: Mapping[str, str]) -> str:
    variables = {**os.environ, **environment, "PYTHONPATH": str(ROOT)}
    return subprocess.run([python, *words], capture_output=True, text=True, check=True, env=variables).stdout


@pytest.mark.parametrize("python", [PYTHON, pytest.param(gpu_server.PYTHON, marks=_OF_CUDA)], ids=["cpu", "cuda"])
def test_torch_gets_the_operators_of_plain_vllm(python, tmp_path):
    environment = gpu_server.gpu_environment(tmp_path) if python != PYTHON else {}
    answers: dict[str, Any] = {}
    for mode in ("plain", "ours"):
        words = (_HERE / "import_operators.py", mode, tmp_path / mode, tmp_path / "plain")
        _run(python, *words[: 3 if mode == "plain" else 4], environment=environment)
        answers[mode] = json.loads((tmp_path / mode).read_text())
    first, num_modules = answers["ours"]["first"]
    assert set(first) <= set(answers["plain"]["operators"]), "no operator is another one than in plain vLLM"
    assert answers["ours"]["operators"] == answers["plain"]["operators"], "late modules add theirs when they are used"
    assert num_modules < len(answers["plain"]["modules"])
    assert (answers["ours"]["names"], answers["ours"]["late"]) == (answers["plain"]["names"], [])


def test_triton_s_keys_sources_and_errors_are_the_same():
    answers = {
        mode: json.loads(_run(PYTHON, _HERE / "triton_kernels.py", mode, environment={}).splitlines()[-1])
        for mode in ("plain", "late")
    }
    assert answers["late"]["answer"] == answers["plain"]["answer"]
    assert (answers["plain"]["num_read"], answers["late"]["num_read"]) == (2, 0)
