"""The plugin keeps the tests that start a server, however they ask for it."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tools.vllm_suite.workspace import HERE

_UTILS = """
class RemoteVLLMServer:
    pass
"""
_TESTS = """
import subprocess
import sys

import pytest

from tests.utils import RemoteVLLMServer


@pytest.fixture
def server():
    return RemoteVLLMServer()


@pytest.fixture(params=["server"])
def chosen_server(request):
    return request.getfixturevalue(request.param)


@pytest.fixture
def client(chosen_server):
    return chosen_server


def run_module():
    program = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--port", "1", "--model", "m", "--x"]
    return subprocess.run(program, capture_output=True, text=True).stdout


def test_fixture(server):
    pass


def test_parameter(client):
    pass


def test_name(request):
    assert request.getfixturevalue("server")


def test_module():
    assert run_module() == "serve m --port 1 --x\\n"


def test_without(request):
    assert request.node
"""


@pytest.mark.thorough
def test_tests_that_start_a_server_are_kept(tmp_path: Path) -> None:
    (tmp_path / "tests").mkdir()
    (tmp_path / "tests" / "__init__.py").touch()
    (tmp_path / "tests" / "utils.py").write_text(_UTILS)
    (tmp_path / "tests" / "test_it.py").write_text(_TESTS)
    command = tmp_path / "vllm"
    command.write_text('#!/bin/sh\necho "$@"\n')
    command.chmod(0o755)
    results = tmp_path / "results"
    variables = {
        "VLLM_SUITE_RESULTS": str(results),
        "PYTHONPATH": f"{HERE / 'plugin'}{os.pathsep}{tmp_path}",
        "PATH": f"{tmp_path}{os.pathsep}{os.environ['PATH']}",
    }
    words = [sys.executable, "-m", "pytest", "-q", "-p", "vllm_suite_plugin", "-p", "no:cacheprovider", "tests"]
    done = subprocess.run(words, cwd=tmp_path, env=os.environ | variables, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout
    found = [json.loads(line) for line in results.read_text().splitlines()]
    outcomes = {
        one["test"].partition("::")[2].partition("[")[0]: one["outcome"] for one in found if "::" in one["test"]
    }
    kept = ["test_fixture", "test_parameter", "test_name", "test_module"]
    assert outcomes == dict.fromkeys(kept, "passed") | {"test_without": "not applicable"}
