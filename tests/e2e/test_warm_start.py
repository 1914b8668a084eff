"""Warm starts have the same commands, outputs and ends as cold starts."""

import json
import random
import re
import signal
import socket
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Final, NamedTuple

import psutil
import pytest

from tests.e2e.server_process import ServerProcess
from tests.support.cli import run_cli
from tests.support.http_client import ask
from tests.support.ports import free_port
from tests.support.standby_process import OFF, StandbyProcess
from tests.support.tiers import slow_but_for
from tests.support.waiting import is_gone, wait_until

_VARYING: Final = (
    (re.compile(r"\d\d-\d\d \d\d:\d\d:\d\d"), "TIME"),
    (re.compile(r"\d+(\.\d+)? m?s\b"), "N s"),
    (re.compile(r"process \[?\d+\]?"), "process N"),
    (re.compile(r"in phase \w+"), "in phase P"),
    (re.compile(r"\((cold|warm)\): http"), "(MODE): http"),
)
_ONLY_WARM: Final = "warm start: forked from the standby's process"
_BY_SPEED: Final = ("prefetch ", "uvicorn.access", ": starting for ")
"""Lines about resident bytes, times of phases, and access logs of probes vary from start to start."""


class _Done(NamedTuple):
    code: int
    stdout: str
    stderr: str


def _run(words: tuple[str, ...], environment: Mapping[str, str]) -> _Done:
    done = run_cli("serve", *words, environment=environment)
    return _Done(done.returncode, _without_varying(done.stdout), _without_varying(done.stderr))


def _without_varying(text: str) -> str:
    """The output without times, process ids and indented lines (the table of phases, stacks of threads)."""
    lines = [line for line in text.splitlines() if not any(word in line for word in (_ONLY_WARM, *_BY_SPEED))]
    text = "\n".join(line for line in lines if line and not line.startswith("  "))
    for pattern, replacement in _VARYING:
        text = pattern.sub(replacement, text)
    return text


def _serve(model: Path, standby: StandbyProcess, *words: str, **options: Any) -> ServerProcess:
    return ServerProcess([str(model), *words], environment=standby.environment, **options)


def test_a_warm_server_is_forked_from_the_template_answers_and_reports_the_fork(tiny_llama, standby, tmp_path):
    num_starts = standby.num_starts()
    report = tmp_path / "report.json"
    with _serve(tiny_llama, standby, "--startup-report", str(report)) as server:
        assert server.complete(max_tokens=3) == 200
        assert standby.num_starts() == num_starts + 1
        forked = server.serving_process()
        assert [forked] == standby.servers()
        assert forked.cmdline() == psutil.Process(server.process.pid).cmdline()
        assert _ONLY_WARM in server.log
        answered = ask(f"{server.url}/startupz").json
    assert is_gone(forked.pid)
    standby.wait_no_server()
    for phases in (answered["phases"], json.loads(report.read_text())["phases"]):
        assert [phase["name"] for phase in phases][:2] == ["interpreter", "fork_from_standby"]


def test_cold_starts_are_not_compared_with_warm_ones(tiny_llama, standby, tmp_path):
    """The remaining time of a start comes from the history of starts of the same mode."""
    cache = {"VLLM_CACHE_ROOT": str(tmp_path)}
    for environment in (standby.environment, OFF):
        with ServerProcess([str(tiny_llama)], environment={**environment, **cache}):
            pass
    assert len(list((tmp_path / "vllm_cli" / "history").iterdir())) == 2


@pytest.mark.parametrize(
    "words",
    slow_but_for(
        [
            "--preflight-only --json",
            "--max-model-len 1000000",
            "--startup-timeout 0.001",
            "--nonsense",
            "--engine vllm",
            "--port TAKEN",
        ],
        "--preflight-only --json",
        "--startup-timeout 0.001",
        "--port TAKEN",
    ),
)
def test_a_start_that_ends_by_itself_ends_as_a_cold_one(words, tiny_llama, standby):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        given = words.replace("TAKEN", str(taken.getsockname()[1])).split()
        port = () if "--port" in words else ("--port", str(free_port()))
        everything = (str(tiny_llama), *port, *given)
        environment = {**standby.environment, "VCLI_STANDBY": "auto" if "vllm" in words else "require"}
        warm = _run(everything, environment)
        assert warm == _run(everything, OFF)
    assert (warm.code == 0) == ("--preflight-only" in words)
    standby.wait_no_server()


@pytest.mark.parametrize(
    "number", slow_but_for(["SIGINT", "SIGTERM", "SIGHUP", "SIGQUIT", "SIGUSR1", "SIGKILL"], "SIGTERM")
)
def test_a_signal_ends_a_ready_server_as_a_cold_one(number, tiny_llama, standby):
    ends = []
    for environment in (standby.environment, OFF):
        with ServerProcess([str(tiny_llama)], environment=environment) as server:
            wait_until(lambda log=server: "ready after" in log.log)  # probes are answered a moment before
            code = server.terminate(signal.Signals[number])
            ends.append((code, _without_varying(server.log).replace(str(server.port), "PORT").splitlines()))
            wait_until(lambda url=server.url: ask(f"{url}/health").status == 0)
    standby.wait_no_server()
    assert ends[0] == ends[1]


def test_a_signal_just_after_the_fork_ends_the_start_and_leaves_nothing(tiny_llama, standby):
    """The front process or the forked server receives the signal. `test_start.py` tests later phases."""
    number = random.choice((signal.SIGINT, signal.SIGTERM))
    with _serve(tiny_llama, standby, wait=False) as server:
        wait_until(standby.servers)
        assert server.terminate(number) in (0, 128 + number, -number, 3)
    standby.wait_no_server()


def test_concurrent_starts_all_answer(tiny_llama, standby):
    num_starts = standby.num_starts()
    with ExitStack() as stack:
        servers = [stack.enter_context(_serve(tiny_llama, standby, wait=False)) for _ in range(4)]
        for server in servers:
            server.wait_ready()
            assert server.complete(max_tokens=2) == 200
        assert standby.num_starts() == num_starts + 4
        for server in servers:
            server.process.terminate()
    standby.wait_no_server()
