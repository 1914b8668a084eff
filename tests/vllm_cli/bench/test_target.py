"""Measured servers, their supervisor (starts, stops, freezes, exits), and the process that probes them."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import psutil
import pytest

from base.machine.server_ports import find_free_port, list_server_ports
from tests.e2e.stop_point import StopPoint
from tests.support.http_server import Request, ScriptedServer, serving
from tests.support.waiting import is_gone, wait_until
from vllm_cli import supervisor
from vllm_cli.bench import probe
from vllm_cli.bench.probe import HealthProbe, ProbeSamples
from vllm_cli.bench.target import Target, TargetSpec
from vllm_cli.supervised_command import CommandEndedError, SupervisedCommand


def command_target(command: str) -> Target:
    return Target(TargetSpec(name="A", command=command))


@pytest.fixture
def running(tmp_path: Path, fake_command: Callable[..., str], monkeypatch: pytest.MonkeyPatch):
    """Starts a server with a child that ignores SIGTERM. Returns the server and both process ids."""
    monkeypatch.setattr("vllm_cli.supervised_command.STOP_GRACE_S", 0.3)

    def start(*flags: str) -> tuple[Target, list[int]]:
        pid_file = tmp_path / "pids"
        target = command_target(fake_command("--pid-file", pid_file, *flags))
        target.start()
        wait_until(lambda: pid_file.exists() and pid_file.read_text().count(" ") == 1)
        return target, [int(argument) for argument in pid_file.read_text().split()]

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
    file = tmp_path / "arguments"
    (tmp_path / "serve").write_text(f"#!/bin/sh\nprintf '%s\\n' \"$@\" variables:$A:$B_2 > {file}\n")
    (tmp_path / "serve").chmod(0o755)
    target = command_target(command.replace("serve", str(tmp_path / "serve"), 1))
    target.start()
    wait_until(lambda: file.exists() and file.read_text().endswith("\n"))
    target.close()
    port = target.base_url.rpartition(":")[2]
    assert file.read_text().splitlines() == [argument.replace("PORT", port) for argument in expected]


def test_the_supervisor_shows_no_word_of_its_command_but_reports_them_without_secrets():
    arguments = ["serve", "--api-key", "sesame", "http://sesame@host"]
    with closing(SupervisedCommand()) as command:
        command.run([sys.executable, "-c", "import time; time.sleep(600)", *arguments])
        assert "sesame" not in " ".join(psutil.Process(command.root_pid).cmdline())
    with closing(SupervisedCommand()) as command:
        command.run(["/nowhere/vllm", *arguments])
        wait_until(lambda: is_gone(command.root_pid))
        with pytest.raises(CommandEndedError) as died:
            command.ensure_alive()
    assert "Cannot run: /nowhere/vllm serve --api-key" in died.value.message
    assert "sesame" not in died.value.message


def test_a_sigterm_while_the_server_is_started_stops_it(tmp_path):
    stop = StopPoint(tmp_path, "subprocess.Popen", "")
    arguments = [sys.executable, supervisor.__file__, "1"]
    with subprocess.Popen(arguments, stdin=subprocess.PIPE, env={**os.environ, **stop.environment}) as process:
        process.stdin.write(json.dumps(["sleep", "600"]).encode() + b"\n")
        process.stdin.flush()
        stopped = stop.wait_stopped()
        process.send_signal(signal.SIGTERM)
        stopped.resume()
        assert process.wait(60) == 128 + signal.SIGTERM  # the server's status


MS = 10**6


def health_server(delay_s: float = 0.0, *, num_answers: int | None = None) -> ScriptedServer:
    """A server that answers each request after the same time. After `num_answers`, it closes connections."""

    def decide(request: Request) -> Any:
        time.sleep(delay_s)
        if num_answers is not None and len(server.requests) > num_answers:
            return _close
        return (503 if request.path == "/health" else 404,)

    server = ScriptedServer(decide)
    return server


def _close(handler: Any) -> None:
    handler.close_connection = True


def probe_until(is_enough: Callable[[], object], url: str) -> ProbeSamples:
    with HealthProbe() as health:
        health.start(url)
        wait_until(is_enough)
        return health.finish()


def test_probes_are_sent_at_the_interval_and_none_is_faster_than_the_server():
    with serving(health_server(0.004)) as server:
        begin_s = time.monotonic()
        samples = probe_until(lambda: len(server.requests) > 7, server.url)
    assert (samples.num_refused, samples.num_lost) == (0, 0)
    most = (time.monotonic() - begin_s) / probe.INTERVAL_S + 2  # the first one is due at once
    assert 6 <= len(samples.latencies_ns) <= most
    num_overdue = len(samples.latencies_ns) - len(server.requests)  # due while another one was late
    assert sum(latency < 4 * MS for latency in samples.latencies_ns) <= num_overdue


def test_probes_that_were_due_while_the_server_was_blocked_count_from_their_due_times():
    with serving(health_server(0.51)) as server:
        samples = probe_until(lambda: len(server.requests) > 3, server.url)
    assert min(samples.latencies_ns) < max(samples.latencies_ns) - 200 * MS  # due at different times
    assert len(samples.latencies_ns) >= 20
    assert sum(latency >= 250 * MS for latency in samples.latencies_ns) >= len(samples.latencies_ns) // 3


def test_refused_connections_before_the_first_response_are_not_lost():
    samples = probe_until(lambda: True, "http://127.0.0.1:9")
    assert (samples.latencies_ns, samples.num_lost, samples.num_refused > 0) == ([], 0, True)


def test_the_probe_ends_when_its_parent_is_killed():
    code = """if True:
        import time
        from vllm_cli.bench.probe import HealthProbe
        health = HealthProbe()
        health.start("http://127.0.0.1:9")
        print(health._process.pid, flush=True)
        time.sleep(60)"""
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE) as parent:
        child = int(parent.stdout.readline())
        assert psutil.pid_exists(child)
        os.kill(parent.pid, signal.SIGKILL)
    wait_until(lambda: is_gone(child))


def test_the_probe_process_imports_only_the_standard_library():
    code = "import sys, runpy; runpy.run_path(sys.argv[1]); print(*{name.partition('.')[0] for name in sys.modules})"
    done = subprocess.run([sys.executable, "-I", "-S", "-c", code, probe.__file__], capture_output=True, text=True)
    assert done.stderr == ""
    assert set(done.stdout.split()) <= sys.stdlib_module_names | {"__main__"}


def test_probes_without_a_response_after_the_first_one_are_lost():
    with serving(health_server(num_answers=2)) as server:
        samples = probe_until(lambda: len(server.requests) > 5, server.url)
    assert len(samples.latencies_ns) >= 2
    assert samples.num_lost >= 3
