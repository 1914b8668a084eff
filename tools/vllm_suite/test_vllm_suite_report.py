"""What the results of vLLM's tests mean for this program."""

import json

import pytest
import yaml

from tools.vllm_suite.__main__ import choose_files
from tools.vllm_suite.file_run import SuiteResult
from tools.vllm_suite.report import Reasons, describe, judge
from tools.vllm_suite.workspace import HERE

FILE = "tests/entrypoints/pooling/test_a.py"
REASONS = Reasons({"pooling/test_a.py::test_gpu*": "needs a GPU"}, {"pooling/test_a.py::test_known(x)": "later"})


@pytest.mark.parametrize(
    ("name", "outcome", "on_vllm", "verdict"),
    [
        ("test_one", "passed", {}, "passed"),
        ("test_one", "failed", {}, "failed"),
        ("test_one", "failed", {f"{FILE}::test_one": "passed"}, "failed"),
        ("test_one", "failed", {f"{FILE}::test_one": "failed"}, "vllm"),
        ("test_known[x]", "failed", {}, "known"),
        ("test_known[x]", "passed", {}, "passed"),
        ("test_gpu_memory", "failed", {}, "not applicable"),
        ("test_skipped", "not applicable", {}, "not applicable"),
    ],
)
def test_verdict_depends_on_lists_and_on_plain_vllm(name, outcome, on_vllm, verdict):
    [judged] = judge([SuiteResult(f"{FILE}::{name}", outcome)], REASONS, on_vllm)
    assert judged.verdict == verdict


def test_share_counts_known_failures_but_not_those_of_plain_vllm():
    names = {"test_one": "passed", "test_known[x]": "failed", "test_gpu": "failed", "test_both": "failed"}
    results = [SuiteResult(f"{FILE}::{name}", outcome, "why") for name, outcome in names.items()]
    lines = list(describe(judge(results, REASONS, {f"{FILE}::test_both": "failed"})))
    assert lines[-1] == "1 of 2 tests passed that count: 50.0 %"
    assert f"known: {FILE}::test_known[x]: later" in lines


def test_files_are_chosen_by_the_beginning_of_their_path(tmp_path):
    for name in ("pooling/embed/test_a.py", "pooling/test_b.py", "openai/test_c.py"):
        file = tmp_path / "tests" / "entrypoints" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.touch()
    assert choose_files(tmp_path, ["pooling/embed", "tests/entrypoints/openai"]) == [
        "tests/entrypoints/openai/test_c.py",
        "tests/entrypoints/pooling/embed/test_a.py",
    ]
    assert len(choose_files(tmp_path, [])) == 3


def test_every_listed_pattern_has_one_reason():
    lists = yaml.safe_load((HERE / "not_applicable.yaml").read_text())
    patterns = [pattern for group in lists.values() for names in group.values() for pattern in names]
    assert len(patterns) == len(set(patterns))


def test_results_of_plain_vllm_name_tests():
    path = HERE / "vllm-0.32-cpu.json"
    for test, outcome in (json.loads(path.read_text()) if path.exists() else {}).items():
        assert "::" in test
        assert outcome in ("passed", "failed")
