"""`python -m tools.soak` on a small server with the faults that its flags ask for, and on a real one."""

import shlex
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest

from tests.llamas import save_tiny_llama
from tools.soak.bodies import GOOD
from tools.soak.results import Gauges, SoakResult

ROOT = Path(__file__).parents[2]
LEAKY_SERVER = Path(__file__).parent / "leaky_server.py"
QUICK = ("--minutes", 0.05, "--warm-up", "50%", "--sample-interval", 0.2, "--burst-interval", 0.4, "--concurrency", 4)
TOLERANT = ("--max-growth", "90%")
"""The memory of a new interpreter is not flat."""


def soak(served: list[str], *words: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "tools.soak", "--cmd", shlex.join(served), *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True, timeout=240, cwd=ROOT)


def leaky_server(*words: object) -> list[str]:
    return [sys.executable, str(LEAKY_SERVER), *map(str, words)]


def read(output: str) -> SoakResult:
    return msgspec.json.decode(output, type=SoakResult)


@pytest.mark.thorough
def test_leaks_are_found(tmp_path: Path) -> None:
    leaks = ("--leaks-bytes", 1 << 18, "--leaks-files", "--leaks-threads", 5, "--keeps-running")
    done = soak(leaky_server(*leaks), *QUICK, "--settle-timeout", 2, "--json", tmp_path / "soak.json")
    assert done.returncode == 1, done.stderr
    problems = "\n".join(read((tmp_path / "soak.json").read_text()).problems)
    grown = ("server: RSS grew by", "all processes: RSS grew by")
    for expected in (*grown, "open files in the end", "threads in the end", "requests run in the end"):
        assert expected in problems, problems
    assert "Not fine: server: RSS grew by" in done.stdout
    assert "Fine:" not in done.stdout


@pytest.mark.slow
def test_failed_and_lost_requests_are_found() -> None:
    faults = ("--fails-every", 7, "--aborts-every", 5, "--errors-every", 11, "--unhealthy-after", 100)
    done = soak(leaky_server(*faults), *QUICK, *TOLERANT, "--json", "-")
    assert done.returncode == 1, done.stderr
    result = read(done.stdout)
    for expected in ("ended with another error", "were lost", "/health were not answered"):
        assert any(expected in problem for problem in result.problems), result.problems
    assert result.statuses["500"] > 0
    assert any("HTTP 500" in message and "deliberate error" in message for message in result.messages)
    assert any("in a stream" in message for message in result.messages)


@pytest.mark.slow
def test_a_real_server_is_asked_for_everything_and_gives_everything_back(tmp_path: Path) -> None:
    folder = save_tiny_llama(tmp_path / "tiny")
    limits = ("--kv-cache-memory-bytes", "8M", "--max-num-queued-reqs", "48")
    served = [sys.executable, "-m", "vllm_cli", "serve", str(folder), "--host", "127.0.0.1", *limits]
    words = ("--minutes", "0.7", "--warm-up", "50%", "--sample-interval", "1", "--burst-interval", "5")
    sizes = ("--prompt-tokens", "200", "--max-tokens", "16", "--max-growth", "50%")
    run = soak(served, *words, *sizes, "--json", "-")
    assert run.returncode == 0, run.stderr
    result = read(run.stdout)
    assert result.left_out == []
    assert {*GOOD, "bad body", "vanishing", "malformed", "pipelined", "slow reader", "burst"} <= set(result.endings)
    assert result.gauges == Gauges(num_running=0, num_waiting=0, kv_cache_usage=0)
    assert result.endings["burst"]["shed"] > 0
    assert {"server", "engine", "forkserver"} <= {who for sample in result.samples for who in sample.groups}
    assert result.health.num_probes > 10
