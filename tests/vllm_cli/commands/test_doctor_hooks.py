"""`vllm-cli doctor --hooks`: a table, JSON and exit codes, with the fake vLLM."""

import json
import shutil
import sys
from pathlib import Path

import pytest

from tests.support.cli import run_cli

pytestmark = pytest.mark.thorough

FAKE = Path(__file__).parents[2] / "startup" / "vllm" / "fake"


@pytest.fixture
def wheel(tmp_path: Path) -> Path:
    """The fake vLLM as an unpacked wheel. It uses the libraries of the tests."""
    shutil.copytree(FAKE, tmp_path / "wheel", ignore=shutil.ignore_patterns("__pycache__"))
    (tmp_path / "wheel" / "vllm-0.32.1.dev7+gabc.dist-info").mkdir()
    return tmp_path / "wheel"


def test_all_hooks_fit_that_can_be_checked(wheel):
    done = run_cli("doctor", "--hooks", "--vllm", wheel)
    assert done.returncode == 0, done.stdout
    assert f"vLLM 0.32.1.dev7+gabc in {wheel / 'vllm'}" in done.stdout
    assert f"\nPython {sys.version.split()[0]}\n" in done.stdout
    assert done.stdout.rstrip().endswith("fit this version.")


def test_a_changed_name_is_reported_with_what_is_lost(wheel):
    tracing = wheel / "vllm" / "tracing.py"
    tracing.write_text(tracing.read_text().replace("def instrument", "def mark"))
    done = run_cli("doctor", "--hooks", "--vllm", wheel)
    assert done.returncode == 1
    assert "vllm.tracing has no instrument" in done.stdout
    assert "- spans: reports lack the phases inside vLLM" in done.stdout


def test_json_has_every_hook(wheel):
    (wheel / "vllm" / "v1" / "engine" / "core.py").unlink()
    done = run_cli("doctor", "--hooks", "--vllm", wheel, "--json")
    assert done.returncode == 1
    report = json.loads(done.stdout)
    assert (report["version"], report["fits"]) == ("0.32.1.dev7+gabc", False)
    unfit = [hook for hook in report["hooks"] if hook["state"] == "does not fit"]
    assert ("preloading", True) in [(hook["hook"], hook["is_essential"]) for hook in unfit]
    assert all("module vllm.v1.engine.core is missing" in hook["reasons"] for hook in unfit)
