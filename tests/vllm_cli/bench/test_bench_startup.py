"""`bench startup` as a process, with real servers that have delays in their start."""

import json
import signal
import subprocess
import sys
from typing import Any

import pytest

from tests.support.waiting import is_gone, wait_until

pytestmark = pytest.mark.thorough

QUICK = ("--rounds", "2", "--pause", "0")


def rounds_of(text: str, side: int = 0, state: int = 0) -> list[dict[str, Any]]:
    rounds: list[dict[str, Any]] = json.loads(text)["sides"][side]["conditions"][state]["rounds"]
    return rounds


def test_each_moment_comes_after_its_delay_and_counts_from_exec(fake_command, run_startup, tmp_path):
    log = tmp_path / "log"
    command = fake_command("--listen-ms", 200, "--ready-ms", 300, "--first-ms", 100, "--log-file", log)
    done = run_startup("--cmd", command, *QUICK, "--json", "-")
    assert done.returncode == 0, done.stderr
    (state,) = json.loads(done.stdout)["sides"][0]["conditions"]
    starts = [json.loads(line) for line in log.read_text().splitlines()]
    assert (len(starts), len(state["rounds"])) == (3, 2)
    for figures, start in zip(state["rounds"], starts[1:], strict=True):
        script_s = (start["bound_ns"] - start["begin_ns"]) / 1e9
        assert 0.2 <= script_s <= figures["listening_ms"] / 1000 <= figures["healthy_s"]
        assert figures["healthy_s"] >= script_s + 0.3
        assert figures["first_token_s"] >= figures["healthy_s"] + 0.1
    assert state["summary"]["first_token_s"]["min"] == min(figures["first_token_s"] for figures in state["rounds"])


def test_rounds_alternate_and_every_other_round_reverses_the_sides(fake_command, run_startup, tmp_path):
    log = tmp_path / "log"
    commands = [fake_command("--log-file", log, "--log-name", name) for name in "xy"]
    done = run_startup("--cmd", commands[0], "--vs", commands[1], *QUICK, "--json", "-")
    starts = [json.loads(line) for line in log.read_text().splitlines()]
    assert "".join(start["name"] for start in starts) == "xy" + "xyyx"
    assert len({start["port"] for start in starts}) > 1
    (ratio,) = json.loads(done.stdout)["ratios"]
    assert ratio["against"] == "B"
    assert set(ratio["ratios"]) >= {"listening_ms", "healthy_s", "first_token_s"}


def test_phases_are_reported_for_servers_with_startupz(fake_command, run_startup):
    done = run_startup("--cmd", fake_command("--reports-phases"), "--vs", fake_command(), *QUICK, "--json", "-")
    assert {figures["phases"]["api:listen"] for figures in rounds_of(done.stdout)} == {0.25}
    assert {len(figures["phases"]) for figures in rounds_of(done.stdout, side=1)} == {0}


def test_a_command_that_never_becomes_ready_exits_with_3_and_shows_its_output(fake_command, run_startup, tmp_path):
    pids = tmp_path / "pids"
    done = run_startup("--cmd", fake_command("--never-ready", "--pid-file", pids), "--ready-timeout", 5, *QUICK)
    assert done.returncode == 3
    assert "was not ready after 5 s" in done.stderr
    assert "the fake server serves" in done.stderr
    assert "Traceback" not in done.stderr
    assert all(is_gone(int(pid)) for pid in pids.read_text().split())


def test_a_measured_start_that_crashes_exits_with_3_and_shows_its_output(fake_command, run_startup, tmp_path):
    log = tmp_path / "log"
    done = run_startup("--cmd", fake_command("--crashes-if", log, "--log-file", log), *QUICK)
    assert done.returncode == 3
    assert "exit status 1" in done.stderr
    assert "the fake server crashes" in done.stderr
    assert "fake_server.py --crashes-if" in done.stderr
    assert "exec_stamp.py" not in done.stderr


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL], ids=["ctrl-c", "term", "kill"])
def test_an_interrupted_run_leaves_no_process(number, fake_command, tmp_path):
    pids = tmp_path / "pids"
    command = fake_command("--pid-file", pids, "--ready-ms", 600_000)
    words = [sys.executable, "-m", "vllm_cli", "bench", "startup", "--cmd", command]
    with subprocess.Popen(words, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True) as bench:
        wait_until(lambda: pids.exists() and pids.read_text().count(" ") == 1)
        bench.send_signal(number)
        code = bench.wait(120)
        assert bench.stderr is not None
        assert "Traceback" not in bench.stderr.read()
    assert code == (-number if number == signal.SIGKILL else 128 + number)
    wait_until(lambda: all(is_gone(int(pid)) for pid in pids.read_text().split()))


def test_a_cold_page_cache_is_verified_and_reported(fake_command, run_startup, tmp_path):
    weights = tmp_path / "weights"
    weights.write_bytes(bytes(3_000_000))
    states = ("--state", "warm", "--state", "cold-pages", "--evict", weights)
    done = run_startup("--cmd", fake_command(), *QUICK, *states, "--json", "-")
    assert done.returncode == 0, done.stderr
    warm, cold = rounds_of(done.stdout), rounds_of(done.stdout, state=1)
    assert not any("evicted_bytes" in figures for figures in warm)
    assert {figures["evicted_bytes"] for figures in cold} == {3_000_000}
    is_reported = "of what was evicted stayed in memory" in done.stderr
    assert is_reported == any(figures["resident_share"] > 0.01 for figures in cold)


def test_the_models_files_are_evicted_by_default(fake_command, run_startup, tmp_path):
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "model.safetensors").write_bytes(bytes(1000))
    command = f"{fake_command()} --log-name {tmp_path}"
    done = run_startup("--cmd", command, *QUICK, "--state", "cold-pages", "--json", "-")
    assert done.returncode == 0, done.stderr
    assert rounds_of(done.stdout)[0]["evicted_bytes"] == 1002
