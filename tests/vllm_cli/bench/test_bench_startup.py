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
    return json.loads(text)["sides"][side]["conditions"][state]["rounds"]


def test_each_moment_comes_after_its_delay_and_counts_from_exec(fake_command, invoke, tmp_path):
    log = tmp_path / "log"
    command = fake_command("--listen-ms", 200, "--ready-ms", 300, "--first-ms", 100, "--log-file", log)
    done = invoke("bench", "startup", "--cmd", command, *QUICK, "--json", "-")
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


def test_rounds_alternate_and_every_other_round_reverses_the_sides(fake_command, invoke, tmp_path):
    """Phases are reported for a server with /startupz."""
    log = tmp_path / "log"
    commands = [
        fake_command("--log-file", log, "--log-name", *arguments) for arguments in (("x", "--reports-phases"), "y")
    ]
    arguments = ("--cmd", commands[0], "--vs", commands[1], "--endpoint", "chat")
    done = invoke("bench", "startup", *arguments, *QUICK, "--json", "-")
    starts = [json.loads(line) for line in log.read_text().splitlines()]
    assert "".join(start["name"] for start in starts) == "xy" + "xyyx"
    assert len({start["port"] for start in starts}) > 1
    assert {figures["spans_end_s"].get("api:listen") for figures in rounds_of(done.stdout)} == {0.25}
    assert {len(figures["spans_end_s"]) for figures in rounds_of(done.stdout, side=1)} == {0}
    (ratio,) = json.loads(done.stdout)["ratios"]
    assert ratio["against"] == "B"
    assert set(ratio["ratios"]) >= {"listening_ms", "healthy_s", "first_token_s"}


@pytest.mark.parametrize(
    ("flags", "arguments", "texts"),
    [
        (["--never-ready"], ["--ready-timeout", 5], ["was not ready after 5 s"]),
        ([], ["--request-model", "huge"], ["answered 404: no model huge"]),
        (["--crashes-if", "LOG"], [], ["exit status 1", "the fake server crashes", "fake_server.py --crashes-if"]),
    ],
    ids=["never ready", "no such model", "crashes in a measured start"],
)
def test_a_start_that_fails_exits_with_3_and_shows_its_output(flags, arguments, texts, fake_command, invoke, tmp_path):
    log, pids = tmp_path / "log", tmp_path / "pids"
    flags = [log if flag == "LOG" else flag for flag in flags]
    done = invoke(
        "bench", "startup", "--cmd", fake_command(*flags, "--log-file", log, "--pid-file", pids), *arguments, *QUICK
    )
    assert done.returncode == 3
    assert all(text in done.stderr for text in texts)
    assert not any(text in done.stderr for text in ("Traceback", "supervisor.py"))
    assert all(is_gone(int(pid)) for pid in pids.read_text().split())


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL], ids=["ctrl-c", "term", "kill"])
def test_an_interrupted_run_leaves_no_process(number, fake_command, tmp_path):
    pids = tmp_path / "pids"
    command = fake_command("--pid-file", pids, "--ready-ms", 600_000)
    arguments = [sys.executable, "-m", "vllm_cli", "bench", "startup", "--cmd", command]
    with subprocess.Popen(arguments, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True) as bench:
        wait_until(lambda: pids.exists() and pids.read_text().count(" ") == 1)
        bench.send_signal(number)
        code = bench.wait(120)
        assert "Traceback" not in bench.stderr.read()
    assert code == (-number if number == signal.SIGKILL else 128 + number)
    wait_until(lambda: all(is_gone(int(pid)) for pid in pids.read_text().split()))
