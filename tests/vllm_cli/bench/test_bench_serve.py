"""`bench serve` as a process, with real servers."""

import json
import os
import re
import subprocess
import sys
import time
from collections import Counter
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.support.waiting import is_gone

pytestmark = pytest.mark.thorough

QUICK = ("--concurrency", "1,2", "--requests", "4", "--rounds", "2", "--max-tokens", "3", "--prompt-tokens", "12")
SHORT = (*QUICK, "--concurrency", "1", "--requests", "2", "--rounds", "1")


def rounds_of(text: str) -> list[dict[str, Any]]:
    """The rounds of the only side under all conditions."""
    (side,) = json.loads(text)["sides"]
    return [figures for condition in side["conditions"] for figures in condition["rounds"]]


def test_a_running_server_is_measured_and_its_tokens_are_counted(fake_server, invoke, tmp_path):
    """All prompts differ behind a prefix of the requested length."""
    server, report = fake_server("--first-ms", 30, "--gap-ms", 10), tmp_path / "result.json"
    done = invoke("bench", "serve", "--url", server.url, *QUICK, "--shared-prefix-tokens", "50", "--json", report)
    assert done.returncode == 0, done.stderr
    assert "after the same 50" in done.stdout
    result = json.loads(report.read_text())
    (side,) = result["sides"]
    facts = [side[name] for name in ("name", "model", "version", "token_source", "has_ignore_eos")]
    assert facts == ["A", "tiny", "1.2.3", "usage", True]
    assert (result["settings"]["max_tokens"], result["settings"]["shared_prefix_tokens"]) == (3, 50)
    assert [level["condition"] for level in side["conditions"]] == ["1 at once", "2 at once"]
    for level, concurrency in zip(side["conditions"], (1, 2), strict=True):
        assert len(level["rounds"]) == 2
        for figures in level["rounds"]:
            counts = [figures[name] for name in ("num_requests", "output_tokens", "num_errors", "num_short")]
            assert counts == [4, 12, 0, 0]
            assert figures["ttft_p50_ms"] >= 30
            assert figures["e2e_p50_ms"] >= 50
            assert figures["itl_p99_ms"] >= 0  # a delayed client reads several tokens at once
            assert figures["num_probes"] > 0
            assert figures["output_tokens_per_s"] <= 1000 * 3 * concurrency / 50
    assert server.process.poll() is None
    prompts = [body["prompt"] for body in server.seen["bodies"] if body["max_tokens"] == 3]
    num_warm_up, num_measured = 1 + 2, 2 * 2 * 4
    assert len(prompts) == len(set(prompts)) == num_warm_up + num_measured
    assert 38 <= len(os.path.commonprefix(prompts).split()) <= 50  # the number at the front is one word of 6 tokens


@pytest.mark.alone
def test_both_sides_get_the_same_prompts_in_alternating_rounds(fake_server, invoke):
    """A side that still captures CUDA graphs is named."""
    servers = [fake_server(), fake_server("--first-ms", 150, "--misses-graphs")]
    done = invoke("bench", "serve", "--url", servers[0].url, "--vs-url", servers[1].url, *QUICK, "--json", "-")
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    prompts = [
        sorted(body["prompt"] for body in server.seen["bodies"] if body["max_tokens"] == 3) for server in servers
    ]
    assert prompts[0] == prompts[1]
    assert [side["name"] for side in result["sides"]] == ["A", "B"]
    steps = re.findall(r"\] (\w+): (\d) at once, round (\d)", done.stderr)
    assert steps == [(name, level, number) for level in "12" for number in "12" for name in "AB"]
    [line] = [line for line in done.stderr.splitlines() if "CUDA graphs" in line]
    assert "B: 2 of 102 CUDA graphs are captured" in line
    assert "wait --graphs" in line
    for ratio in result["ratios"]:
        assert ratio["against"] == "B"
        assert ratio["ratios"]["output_tokens_per_s"]["median"] > 1
        assert ratio["ratios"]["ttft_p50_ms"]["median"] < 1


@pytest.mark.parametrize("idle", ["pause", "run"])
def test_started_servers_are_frozen_while_the_other_one_is_measured(idle, fake_command, invoke, tmp_path):
    """The test reads the processes' states, because a frozen server cannot record when it is frozen.

    For a moment, before the next server continues, both are frozen.
    """
    pid_files = [tmp_path / "a", tmp_path / "b"]
    ours, theirs = (fake_command("--pid-file", file, "--gap-ms", 200) for file in pid_files)
    words = [sys.executable, "-m", "vllm_cli", "bench", "serve", "--cmd", ours, "--vs", theirs, "--idle", idle, *SHORT]
    seen = Counter[tuple[bool, ...]]()
    with subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as bench:
        while bench.poll() is None:
            seen[tuple(map(_is_frozen, pid_files))] += all(file.exists() for file in pid_files)
            time.sleep(0.01)
    assert bench.returncode == 0
    if idle == "pause":
        assert seen[True, False] and seen[False, True]
    else:
        assert seen[False, False] > seen.total() / 2, "tools/random_stops.py stops a server, too"
    assert all(is_gone(int(pid)) for file in pid_files for pid in file.read_text().split())


def _is_frozen(pid_file: Path) -> bool:
    with suppress(OSError, IndexError, psutil.NoSuchProcess):  # it has not started yet, or has ended
        return psutil.Process(int(pid_file.read_text().split()[0])).status() == psutil.STATUS_STOPPED
    return False


@pytest.mark.parametrize(
    ("words", "code", "texts"),
    [
        (["--url", "SERVER", "--vs", ["--crashes"]], 3, ["exit status 1", "the fake server crashes"]),
        (["--url", "http://127.0.0.1:9", "--ready-timeout", 10_000], 3, ["No server answers at http://127.0.0.1:9"]),
        (["--url", "SERVER", "--model", "huge"], 3, ["no model huge"]),
        (["--cmd", ["--exits-after", 4]], 1, ["exit status 9"]),
    ],
    ids=["the other side crashes", "no server", "no model", "it exits meanwhile"],
)
def test_a_server_that_cannot_be_measured_is_explained(words, code, texts, fake_server, fake_command, invoke):
    """Nothing is measured if the other side crashes. The output of a command is shown."""
    server = fake_server()
    given = [fake_command(*word) if isinstance(word, list) else word for word in words]
    done = invoke("bench", "serve", *(server.url if word == "SERVER" else word for word in given), *QUICK)
    assert done.returncode == code
    assert all(text in done.stderr for text in texts)
    assert "Traceback" not in done.stderr
    assert len(server.seen["bodies"]) <= 1


def test_failed_requests_exit_with_1_and_are_reported(fake_server, invoke):
    server = fake_server("--fails-every", 5)
    done = invoke("bench", "serve", "--url", server.url, *QUICK)
    assert done.returncode == 1
    assert re.search(r"^failed requests +[1-9]", done.stdout, re.MULTILINE)
    assert "HTTP 400" in done.stdout
    assert "deliberate error" in done.stdout


def test_a_server_that_rejects_ignore_eos_is_measured_without_it(fake_server, invoke):
    server = fake_server("--rejects", "ignore_eos", "--stops-after", 2)
    done = invoke("bench", "serve", "--url", server.url, *QUICK, "--json", "-")
    assert done.returncode == 0, done.stderr
    (side,) = json.loads(done.stdout)["sides"]
    assert (side["has_ignore_eos"], side["token_source"]) == (False, "usage")
    assert all(figures["num_short"] == figures["num_requests"] for figures in rounds_of(done.stdout))
    assert "does not accept ignore_eos" in done.stderr
    assert "answers ended before 3 tokens" in done.stderr


def test_chats_are_measured_too(fake_server, invoke):
    server = fake_server()
    done = invoke("bench", "serve", "--url", server.url, "--endpoint", "chat", *QUICK, "--json", "-")
    assert done.returncode == 0, done.stderr
    assert rounds_of(done.stdout)[0]["output_tokens"] == 12
    assert all("messages" in body for body in server.seen["bodies"])
