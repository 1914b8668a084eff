"""`vllm-cli doctor`: verdict, parts and exit codes, with the embedded engine and the fake vLLM."""

import json
import os
from pathlib import Path

import pytest

from tests.startup.vllm.fake_start import environment
from tests.support.cli import run_cli

ROOT = Path(__file__).parents[3]


def test_a_start_with_a_fault_has_it_in_the_first_line(invoke, tmp_path):
    done = invoke("doctor", tmp_path / "no", "--engine", "embedded")
    verdict, *rest = done.stdout.splitlines()
    assert (done.returncode, done.stderr) == (1, "")
    assert verdict.startswith("1 error")
    assert str(tmp_path / "no") in verdict
    assert [line for line in rest if line.startswith("# ")] == ["# Preflight", "# Machine", "# Kept between starts"]


def test_a_good_model_is_ok_for_programs_too(invoke, model_path):
    done = invoke("doctor", model_path, "--engine", "embedded", "--port", "0", "--json")
    report = json.loads(done.stdout)
    assert (done.returncode, report["ok"], report["hooks"]) == (0, True, None)
    assert report["verdict"].startswith("ok")
    assert report["verdict"].endswith(": the embedded engine can be started here")
    assert report["machine"]["cpu"]["cores"] == os.cpu_count()
    assert "preload_profiles" in report["kept"]


def test_words_that_serve_rejects_are_a_usage_error(invoke):
    done = invoke("doctor", "--engine", "embedded", "--dtpe", "half")
    assert (done.returncode, done.stdout) == (2, "")
    assert "--dtype" in done.stderr


@pytest.mark.thorough
def test_with_vllm_the_hooks_are_checked(tmp_path: Path):
    done = run_cli("doctor", "--engine", "vllm", "--json", env=environment(tmp_path), cwd=ROOT)
    report = json.loads(done.stdout)
    assert report["hooks"]["version"] in report["verdict"]
    assert done.returncode == (0 if report["hooks"]["fits"] else 1)
    assert ("warning" in report["verdict"]) is (not report["hooks"]["fits"])
