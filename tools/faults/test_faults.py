"""`python -m tools.faults` on a real server."""

import json
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.thorough

ROOT = Path(__file__).parents[2]


def test_a_killed_engine_turns_unhealthy_then_ready_then_gives_a_token(model_path: Path, tmp_path: Path) -> None:
    served = shlex.join([sys.executable, "-m", "vllm_cli", "serve", str(model_path), "--host", "127.0.0.1"])
    command = [sys.executable, "-m", "tools.faults", "--cmd", served, "--rounds", "1", "--settle", "0"]
    command += ["--json", str(tmp_path / "faults.json")]
    run = subprocess.run(command, capture_output=True, text=True, timeout=280, cwd=ROOT)
    assert run.returncode == 0, run.stderr
    assert "1 engines killed" in run.stdout
    result = json.loads((tmp_path / "faults.json").read_text())
    (measured,) = result["rounds"]
    assert result["start_s"] > 0
    assert 0 < measured["unhealthy_ms"] / 1e3 <= measured["ready_s"] <= measured["first_token_s"]
