"""`vllm-cli ps` and `stop` know a vLLM that was started with `--engine vllm`, with all of its processes."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from tests.startup.vllm.fake_start import FakeStart


def _cli(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "vllm_cli", *words], capture_output=True, text=True, timeout=200)


def _entry(start: FakeStart) -> dict[str, Any]:
    (entry,) = (e for e in json.loads(_cli("ps", "--json").stdout) if e["pid"] == start.process.pid)
    return dict(entry)


def test_vllm_is_found_and_stopped_with_all_its_processes(folder: Path) -> None:
    with FakeStart(folder, "model", "--served-model-name", "fake") as start:
        start.wait_until_ready()
        entry = _entry(start)
        assert (entry["port"], entry["state"], entry["engine"], entry["model"]) == (start.port, "ready", "vllm", "fake")
        assert set(entry["pids"]) == {start.process.pid, *(p.pid for p in start.note_tree())}
        assert len(entry["pids"]) > 2
        assert _cli("stop", str(start.port)).returncode == 0
        assert start.process.wait(60) == 0
        start.wait_until_tree_is_gone()


def test_vllm_that_starts_tells_so(folder: Path) -> None:
    with FakeStart(folder, "--gate", str(folder / "gate")) as start:
        start.wait_until_answered(503)
        entry = _entry(start)
        assert (entry["port"], entry["state"]) == (start.port, "starting")
