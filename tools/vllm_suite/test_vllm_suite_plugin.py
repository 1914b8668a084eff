"""The plugin keeps the tests that plain vLLM passes, except those in the lists."""

import json
import os
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

import pytest
import yaml

from tools.vllm_suite.__main__ import HERE, choose_tests

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


def run_module():
    program = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--port", "1", "--model", "m", "--x"]
    return subprocess.run(program, capture_output=True, text=True).stdout


def test_fixture(server):
    pass


def test_module():
    assert run_module() == "serve m --port 1 --x\\n"


def test_with_a_gpu(server):
    raise AssertionError


@pytest.mark.parametrize("field", ["later"])
def test_not_built(server, field):
    raise AssertionError


def test_that_vllm_fails(server):
    raise AssertionError


def test_wrong(server):
    raise AssertionError
"""
_LISTS = """
not_applicable:
  "needs a GPU":
    - "test_it.py::test_with_a_gpu*"
    - "llm/*"
known_failures:
  "is not built":
    - "test_it.py::test_not_built(later)"
"""
_KEPT = ("test_fixture", "test_module")


@pytest.fixture
def suite(tmp_path: Path) -> Path:
    """A source tree with tests, the command `vllm` and the lists."""
    entrypoints = tmp_path / "tests" / "entrypoints"
    (entrypoints / "llm").mkdir(parents=True)
    for package in (tmp_path / "tests", entrypoints, entrypoints / "llm"):
        (package / "__init__.py").touch()
    (tmp_path / "tests" / "utils.py").write_text(_UTILS)
    (entrypoints / "test_it.py").write_text(_TESTS)
    (entrypoints / "llm" / "test_class.py").write_text("import tests.utils.RemoteVLLMServer.missing")
    (entrypoints / "test_modules.py").write_text("import a_module_that_is_missing")
    command = tmp_path / "vllm"
    command.write_text('#!/bin/sh\necho "$@"\n')
    command.chmod(0o755)
    (tmp_path / "not_applicable.yaml").write_text(_LISTS)
    return tmp_path


def run(suite: Path, server: str) -> dict[str, str]:
    """The outcome of each test that was not deselected."""
    variables = {
        "VLLM_SUITE_LISTS": str(suite),
        "VLLM_SUITE_SERVER": server,
        "PYTHONPATH": f"{HERE / 'plugin'}{os.pathsep}{suite}",
        "PATH": f"{suite}{os.pathsep}{os.environ['PATH']}",
    }
    words = [sys.executable, "-m", "pytest", "-p", "vllm_suite_plugin", "-p", "no:cacheprovider", "--junitxml=out.xml"]
    command = [*words, f"--rootdir={suite}", "tests/entrypoints"]
    done = subprocess.run(command, cwd=suite, env=os.environ | variables, capture_output=True, text=True, timeout=300)
    assert done.returncode == 1, done.stdout
    cases = ElementTree.parse(suite / "out.xml").iter("testcase")
    return {case.attrib["name"].partition("[")[0]: next((child.tag for child in case), "passed") for case in cases}


@pytest.mark.thorough
def test_only_what_plain_vllm_passes_is_run_and_failures_with_a_reason_do_not_count(suite):
    passed = dict.fromkeys((*_KEPT, "test_with_a_gpu", "test_not_built[later]", "test_wrong"), "passed")
    results = passed | {"test_that_vllm_fails": "failed"}
    named = {f"tests/entrypoints/test_it.py::{name}": outcome for name, outcome in results.items()}
    (suite / "vllm-0.32-cpu.json").write_text(json.dumps(named))
    assert run(suite, "ours") == {
        **dict.fromkeys(_KEPT, "passed"),
        "test_not_built": "skipped",
        "test_wrong": "failure",
    }


@pytest.mark.thorough
def test_the_results_of_plain_vllm_are_kept(suite):
    (suite / "vllm-0.32-cpu.json").write_text('{"tests/entrypoints/test_other.py::test_it": "passed"}')
    failed = ("test_not_built", "test_that_vllm_fails", "test_wrong")
    outcomes = dict.fromkeys(_KEPT, "passed") | dict.fromkeys(failed, "failure")
    assert run(suite, "vllm") == outcomes
    kept = json.loads((suite / "vllm-0.32-cpu.json").read_text())
    assert kept.pop("tests/entrypoints/test_other.py::test_it") == "passed"
    assert len(kept) == len(outcomes)
    assert {outcome for test, outcome in kept.items() if "not_built" in test or "wrong" in test} == {"failed"}


def test_words_that_name_no_test_are_options_of_pytest(suite):
    assert choose_tests(suite, ["llm", "-k", "chat", "tests/entrypoints/test_it.py::test_name"]) == (
        ["tests/entrypoints/llm", "tests/entrypoints/test_it.py::test_name"],
        ["-k", "chat"],
    )
    assert choose_tests(suite, []) == (["tests/entrypoints"], [])


def test_every_listed_pattern_has_one_reason():
    lists = yaml.safe_load((HERE / "not_applicable.yaml").read_text())
    patterns = [pattern for group in lists.values() for names in group.values() for pattern in names]
    assert len(patterns) == len(set(patterns))


def test_results_of_plain_vllm_name_tests():
    for test, outcome in json.loads((HERE / "vllm-0.32-cpu.json").read_text()).items():
        assert "::" in test
        assert outcome in ("passed", "failed")
