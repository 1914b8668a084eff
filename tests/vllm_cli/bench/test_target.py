"""Measured servers and their supervisor: starts, stops, freezes and reports of exits."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import psutil
import pytest

from base.machine.server_ports import find_free_port, list_server_ports
from tests.e2e.stop_point import StopPoint
from tests.support.waiting import is_gone, wait_until
from vllm_cli import supervisor
from vllm_cli.bench.target import Target, TargetSpec
from vllm_cli.supervised_command import CommandEndedError, SupervisedCommand

Start = Callable[..., tuple[Target, list[int]]]


def command_target(command: str) -> Target:
    return Target(TargetSpec(name="A", command=command))


@pytest.fixture
def running(tmp_path: Path, fake_command: Callable[..., str], monkeypatch: pytest.MonkeyPatch) -> Start:
    """Starts a server with a child that ignores SIGTERM. Returns the server and both process ids."""
    monkeypatch.setattr("vllm_cli.supervised_command.STOP_GRACE_S", 0.3)

    def start(*flags: str) -> tuple[Target, list[int]]:
        pid_file = tmp_path / "pids"
        target = command_target(fake_command("--pid-file", pid_file, *flags))
        target.start()
        wait_until(lambda: pid_file.exists() and pid_file.read_text().count(" ") == 1)
        return target, [int(word) for word in pid_file.read_text().split()]

    return start


@pytest.mark.thorough
@pytest.mark.parametrize("flags", [[], ["--ignores-sigterm"]], ids=["polite", "stubborn"])
def test_a_server_is_frozen_resumed_and_stopped_with_its_daemonized_child(flags, running):
    target, pids = running(*flags)
    states = [psutil.Process(pid).status for pid in pids]
    try:
        for command, is_frozen in (("pause", True), ("resume", False), ("pause", True)):
            target.send(command)
            wait_until(lambda is_frozen=is_frozen: {state() == "stopped" for state in states} == {is_frozen})
    finally:
        target.close()
    assert all(map(is_gone, pids))


def test_the_exit_of_a_server_is_noticed(running):
    target, (server, _) = running()
    target.ensure_alive()
    os.kill(server, signal.SIGKILL)
    with pytest.raises(CommandEndedError, match="exit status 137"):
        wait_until(lambda: bool(target.ensure_alive()))
    target.close()


def test_a_port_is_outside_the_kernels_client_range():
    least, most = map(int, Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split())
    if least <= 10_000:
        pytest.skip(f"clients have all ports from {least} on")
    assert not any(least <= find_free_port(list_server_ports()) <= most for _ in range(100))


def test_a_command_that_does_not_exist_is_reported():
    target = command_target("no-such-server-anywhere serve")
    target.start()
    with pytest.raises(CommandEndedError, match=r"Cannot run: no-such-server\S* serve --port \d+\n.*No such file"):
        wait_until(lambda: bool(target.ensure_alive()))
    target.close()


@pytest.mark.parametrize(
    ("command", "expected"),
    [
        ("serve x", ["x", "--port", "PORT", "variables::"]),
        ("serve --listen 'a b:{port}'", ["--listen", "a b:PORT", "variables::"]),
        ("A=1 B_2=x serve", ["--port", "PORT", "variables:1:x"]),
    ],
    ids=["appended", "placeholder", "environment"],
)
def test_the_port_is_inserted_or_appended_and_variables_are_set(command, expected, tmp_path):
    words_file = tmp_path / "words"
    (tmp_path / "serve").write_text(f"#!/bin/sh\nprintf '%s\\n' \"$@\" variables:$A:$B_2 > {words_file}\n")
    (tmp_path / "serve").chmod(0o755)
    target = command_target(command.replace("serve", str(tmp_path / "serve"), 1))
    target.start()
    wait_until(lambda: words_file.exists() and words_file.read_text().endswith("\n"))
    target.close()
    port = target.base_url.rpartition(":")[2]
    assert words_file.read_text().splitlines() == [word.replace("PORT", port) for word in expected]


def test_the_supervisor_shows_no_word_of_its_command_but_reports_them_without_secrets():
    words = ["serve", "--api-key", "sesame", "http://sesame@host"]
    with closing(SupervisedCommand()) as command:
        command.run([sys.executable, "-c", "import time; time.sleep(600)", *words])
        assert "sesame" not in " ".join(psutil.Process(command.root_pid).cmdline())
    with closing(SupervisedCommand()) as command:
        command.run(["/nowhere/vllm", *words])
        wait_until(lambda: is_gone(command.root_pid))
        with pytest.raises(CommandEndedError) as died:
            command.ensure_alive()
    assert "Cannot run: /nowhere/vllm serve --api-key" in died.value.message
    assert "sesame" not in died.value.message


def test_a_sigterm_while_the_server_is_started_stops_it(tmp_path):
    stop = StopPoint(tmp_path, "subprocess.Popen", "")
    words = [sys.executable, supervisor.__file__, "1"]
    with subprocess.Popen(words, stdin=subprocess.PIPE, env={**os.environ, **stop.environment}) as process:
        assert process.stdin is not None
        process.stdin.write(json.dumps(["sleep", "600"]).encode() + b"\n")
        process.stdin.flush()
        stopped = stop.wait_stopped()
        process.send_signal(signal.SIGTERM)
        stopped.resume()
        assert process.wait(60) == 128 + signal.SIGTERM  # the server's status
