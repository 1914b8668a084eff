"""A short run of the random swaps."""

import json
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.slow
def test_a_few_random_swaps_lose_and_leave_nothing(tmp_path: Path) -> None:
    result, log = tmp_path / "result.json", tmp_path / "router.log"
    command = [sys.executable, "-m", "tools.random_swaps", "--swaps", "30", "--json", str(result), "--log", str(log)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=900)
    assert result.exists(), done.stderr
    assert done.returncode == 0, result.read_text() + log.read_text()[-5000:]
    assert json.loads(result.read_text())["num_swaps"] >= 30
