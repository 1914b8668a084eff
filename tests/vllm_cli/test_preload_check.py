"""`vllm-cli preload check`: a table, JSON and exit codes, from planted sources."""

import json
import shutil
import sys
from pathlib import Path

import pytest

from startup.processes import interpreter

FAKE = Path(__file__).parents[1] / "startup" / "vllm" / "fake"


@pytest.fixture
def wheel(tmp_path: Path) -> Path:
    """The fake vLLM as an unpacked wheel; its libraries are not beside it."""
    shutil.copytree(FAKE, tmp_path / "wheel", ignore=shutil.ignore_patterns("__pycache__"))
    (tmp_path / "wheel" / "vllm-0.32.1.dev7+gabc.dist-info").mkdir()
    return tmp_path / "wheel"


def test_all_hooks_fit_that_can_be_checked(invoke, wheel):
    done = invoke("preload", "check", "--vllm", wheel)
    assert done.returncode == 0, done.stdout
    assert f"vLLM 0.32.1.dev7+gabc in {wheel / 'vllm'}" in done.stdout
    assert f"\nPython {sys.version.split()[0]}\n" in done.stdout
    assert "torch is not installed here" in done.stdout
    assert done.stdout.rstrip().endswith("All hooks that could be checked fit this version.")


def test_a_python_that_is_not_tested_is_named(invoke, wheel, monkeypatch):
    monkeypatch.setattr(interpreter, "NEWEST_TESTED", (3, 10))
    done = invoke("preload", "check", "--vllm", wheel)
    assert ", which is not tested: a start tries a fork first\n" in done.stdout


def test_a_changed_name_is_reported_with_what_is_lost(invoke, wheel):
    tracing = wheel / "vllm" / "tracing.py"
    tracing.write_text(tracing.read_text().replace("def instrument", "def mark"))
    done = invoke("preload", "check", "--vllm", wheel)
    assert done.returncode == 1
    assert "vllm.tracing has no instrument" in done.stdout
    assert "- spans: the report of the start has no phases inside vLLM" in done.stdout


def test_json_has_every_hook(invoke, wheel):
    (wheel / "vllm" / "v1" / "engine" / "core.py").unlink()
    done = invoke("preload", "check", "--vllm", wheel, "--json")
    assert done.returncode == 1
    report = json.loads(done.stdout)
    assert (report["version"], report["fits"]) == ("0.32.1.dev7+gabc", False)
    unfit = [hook for hook in report["hooks"] if hook["state"] == "does not fit"]
    found = [(hook["hook"], hook["is_essential"]) for hook in unfit]
    assert found == [("engine's modules", True)]
    assert unfit[0]["reasons"] == ["module vllm.v1.engine.core is missing"]


@pytest.mark.parametrize(
    "words", [("--vllm", "."), ("--vllm", "/absent"), ("--unknown",)], ids=["empty", "absent", "flag"]
)
def test_usage_errors(invoke, words, tmp_path):
    (tmp_path / "empty").mkdir()
    done = invoke("preload", "check", *(tmp_path if word == "." else word for word in words))
    assert done.returncode == 2
    assert done.stderr
