"""The plugin keeps the tests that plain vLLM does not fail, except those in the lists."""

import json
import os
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

import pytest
import yaml

from tools.vllm_suite.__main__ import HERE, choose_tests

_RELEASE = "0.2"
_UTILS = """
import subprocess


class RemoteVLLMServer:
    def __enter__(self):
        self.process = subprocess.Popen(["vllm", "stay"])

    def __exit__(self, *_):
        self.process.kill()
        self.process.wait()
"""
_TESTS = """
import subprocess
import sys

import pytest

from tests.utils import RemoteVLLMServer


@pytest.fixture
def server():
    with RemoteVLLMServer() as server:
        yield server


def test_class():
    pass


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
_KEPT = ("test_class", "test_fixture", "test_module")


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
    command.write_text('#!/bin/sh\n[ "$1" = stay ] && exec sleep 300\necho "$@"\n')
    command.chmod(0o755)
    (tmp_path / "not_applicable.yaml").write_text(_LISTS)
    info = tmp_path / "vllm-0.2.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: vllm\nVersion: {_RELEASE}+cpu\n")
    return tmp_path


def run(suite: Path, server: str, code: int = 1) -> dict[str, str]:
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
    assert done.returncode == code, done.stdout
    cases = ElementTree.parse(suite / "out.xml").iter("testcase")
    return {case.attrib["name"].partition("[")[0]: next((child.tag for child in case), "passed") for case in cases}


_TEST = "tests/entrypoints/test_it.py::"


def results(suite: Path) -> dict[str, dict[str, str]]:
    return json.loads((suite / "results.json").read_text())["outcomes"]


@pytest.mark.thorough
def test_plain_vllm_is_asked_for_what_the_embedded_engine_fails_which_then_runs_only_what_vllm_passes(suite):
    assert run(suite, "embedded") == {
        **dict.fromkeys(_KEPT, "passed"),
        "test_not_built": "skipped",
        **dict.fromkeys(("test_that_vllm_fails", "test_wrong"), "failure"),
    }
    failed = {f"{_TEST}{name}" for name in ("test_not_built[later]", "test_that_vllm_fails", "test_wrong")}
    assert results(suite) == {
        **{f"{_TEST}{name}": {"embedded": "passed"} for name in _KEPT if name != "test_class"},
        **dict.fromkeys(failed, {"embedded": "failed"}),
    }, "test_class starts no server"
    assert run(suite, "vllm") == dict.fromkeys(("test_not_built", "test_that_vllm_fails", "test_wrong"), "failure")
    [of_vllm] = {name for name in results(suite)[f"{_TEST}test_wrong"] if name != "embedded"}
    assert of_vllm == f"vllm {_RELEASE}"
    assert run(suite, "embedded", code=0) == dict.fromkeys(_KEPT, "passed")


@pytest.mark.thorough
def test_with_tests_of_another_release_only_what_plain_vllm_fails_is_kept(suite):
    test = f"{_TEST}test_that_vllm_fails"
    outcomes = {test: {"embedded": "passed", "vllm 0.1": "failed"}, f"{_TEST}test_wrong": {"embedded": "failed"}}
    (suite / "results.json").write_text(json.dumps({"tests of": "0.1", "outcomes": outcomes}))
    assert "test_that_vllm_fails" not in run(suite, "embedded")
    assert results(suite)[test] == {"vllm 0.1": "failed"}


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


def test_results_name_tests_and_the_page_has_their_number():
    outcomes = json.loads((HERE / "results.json").read_text())["outcomes"]
    assert {outcome for of in outcomes.values() for outcome in of.values()} == {"passed", "failed"}
    assert all("::" in test for test in outcomes)
    of_ours = [of["embedded"] for of in outcomes.values() if "embedded" in of]
    page = " ".join((HERE.parents[1] / "docs" / "tested.md").read_text().split())
    assert f"{of_ours.count('passed')} of {len(of_ours)} tests" in page
