"""`vllm-cli bake --engine vllm` with the fake vLLM."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.startup.vllm.fake_start import FakeStart, environment

pytestmark = pytest.mark.thorough

_WORDS = ("model", "--enforce-eager")


def _bake(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    command = (sys.executable, "-m", "vllm_cli", "bake", *words, "--engine", "vllm", "--output", str(folder / "baked"))
    return subprocess.run(command, env=environment(folder), capture_output=True, text=True, timeout=120)


def test_the_first_start_continues_the_profile_of_the_build(tmp_path):
    done = _bake(tmp_path, *_WORDS, "--json")
    assert done.returncode == 0, done.stderr
    assert {"preload profile", "start history"} <= {part["name"] for part in json.loads(done.stdout)["parts"]}
    (baked,) = (tmp_path / "baked" / "cache" / "vllm_cli" / "preload").glob("*.json")
    variables = environment(tmp_path, VCLI_BAKED=str(tmp_path / "baked"))
    with FakeStart(tmp_path, *_WORDS, env=variables) as start:
        start.wait_until_ready()
        start.wait_for_line("ready after")
    own = tmp_path / "cache" / "vllm_cli" / "preload" / baked.name
    assert json.loads(own.read_bytes())["num_starts"] == 2
    assert json.loads(baked.read_bytes())["num_starts"] == 1


def test_without_a_start_vllm_is_imported_and_the_report_says_so(tmp_path):
    done = _bake(tmp_path, "--no-start", "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["left_out"]["a start with a request"] == "--no-start"
    assert (tmp_path / "baked" / "manifest.json").exists()


def test_a_failed_start_keeps_the_earlier_folder(tmp_path):
    assert _bake(tmp_path, "--no-start").returncode == 0
    before = (tmp_path / "baked" / "manifest.json").read_bytes()
    done = _bake(tmp_path, "model", "--no-such-flag")
    assert done.returncode == 3
    assert "the start failed" in done.stderr
    assert (tmp_path / "baked" / "manifest.json").read_bytes() == before
    assert [path.name for path in tmp_path.iterdir() if "baked" in path.name] == ["baked"]
