"""`vllm-cli ps` and `vllm-cli stop` with running servers."""

import json
import os
import signal
import subprocess
from typing import Any

import psutil
import pytest

from tests.e2e.server_process import ServerProcess, wait_process
from tests.support.cli import run_cli
from tests.support.containers import own_processes
from tests.support.standby_process import OFF
from tests.support.waiting import GONE_S, wait_until


def _entries(**options: Any) -> list[dict[str, Any]]:
    return json.loads(run_cli("ps", "--json", **options).stdout)


def _find(pid: int) -> dict[str, Any] | None:
    """The only entry of `ps` that has this process, or None."""
    found = [entry for entry in _entries() if pid in entry["pids"]]
    assert len(found) <= 1
    return found[0] if found else None


def _entry(server: ServerProcess) -> dict[str, Any]:
    entry = _find(server.process.pid)
    assert entry is not None
    return entry


def _wait_ready(pid: int) -> dict[str, Any]:
    """Polls `ps` until it shows the server as ready. On a busy machine, earlier probes may time out."""
    wait_until(lambda: (_find(pid) or {}).get("state") == "ready", 240.0)
    return _find(pid) or {}


def _pids(server: ServerProcess) -> set[int]:
    return {process.pid for process in server.family()}


def test_server_is_found_and_stopped_by_its_port(start_tiny_server, cold_or_warm):
    with start_tiny_server(environment=cold_or_warm) as server:
        before = _pids(server)
        entry = _wait_ready(server.process.pid)
        after = _pids(server)  # a helper process of the start may have exited meanwhile
        assert (entry["port"], entry["address"], entry["model"]) == (server.port, server.url, "smol")
        assert (entry["pid"], entry["kind"], entry["engine"]) == (server.process.pid, "server", "embedded")
        assert entry["uptime_s"] > 0
        mode = "cold" if entry["forked_pid"] is None else "warm"
        assert (entry["start"]["start_mode"], server.metric("vllm_cli:start_info", start_mode=mode)) == (mode, 1)
        assert entry["pids"][0] == server.process.pid
        assert (entry["forked_pid"] or entry["pid"]) == server.serving_process().pid
        assert before & after <= set(entry["pids"]) <= before | after
        assert entry["memory_bytes"] > wait_process(server, "engine").memory_full_info().pss / 2
        line = next(line for line in run_cli("ps").stdout.splitlines() if line.startswith(f"{server.process.pid} "))
        assert server.url in line
        assert "smol" in line

        server.family()
        done = run_cli("stop", server.port)
        assert (done.returncode, done.stdout) == (0, f"smol on {server.url} has stopped\n")
        assert server.process.wait(GONE_S) == 0
        assert server.process.pid not in [each["pid"] for each in _entries()]


def _stop_process(which: str, entry: dict[str, Any], *arguments: str) -> subprocess.CompletedProcess[str]:
    """Stops a process by its id, or by the address if the id is the port of another test's server."""
    run = run_cli("stop", entry[which], *arguments)
    return run_cli("stop", entry["address"], *arguments) if "by its address" in run.stderr else run


@pytest.mark.parametrize("which", ["pid", "forked_pid"])
def test_server_that_does_not_stop_in_time_is_killed(which, start_tiny_server, cold_or_warm):
    """In a warm start, the stopped process is the front process or the forked server."""
    if which == "forked_pid" and cold_or_warm == OFF:
        pytest.skip("a cold start has no such process")
    with start_tiny_server(wait=False, environment=cold_or_warm) as server:
        server.wait_listening()
        entry = _entry(server)
        server.family()
        assert entry["state"] in ("starting", "not listening", "silent", "ready")
        os.kill(entry[which], signal.SIGSTOP)
        run = _stop_process(which, entry, "--timeout", "0.5")
        assert run.returncode == 4
        assert "was killed" in run.stdout
        assert server.process.wait(GONE_S) == -signal.SIGKILL


def test_the_standby_is_listed_after_the_servers_and_stop_leaves_it(start_tiny_server, standby):
    with start_tiny_server(environment=standby.environment) as server:
        kinds = [entry["kind"] for entry in _entries()]
        assert kinds == sorted(kinds)
        assert _stop_process("forked_pid", _entry(server)).returncode == 0
        assert server.process.wait(GONE_S) == 0
    (entry,) = [e for e in _entries(environment=standby.environment) if e["pid"] == standby.process.pid]
    both = [entry["pid"], standby.template().pid]
    assert (entry["kind"], entry["state"], entry["pids"][:1]) == ("standby", "ready", both[:1])
    assert {*both} <= {*entry["pids"]}, "a helper may still run"
    assert entry["memory_bytes"] > 50 << 20
    assert {name for name, value in entry.items() if value is None} == {
        "port",
        "address",
        "model",
        "engine",
        "forked_pid",
        "owner_pid",
        "start",
    }
    (line,) = [line for line in run_cli("ps").stdout.splitlines() if line.startswith(f"{entry['pid']} ")]
    assert line.split()[-3:-1] == ["standby", "-"]
    for pid in both:
        done = run_cli("stop", pid)
        assert (done.returncode, "`vllm-cli standby stop`" in done.stderr) == (1, True)
    assert standby.process.poll() is None


def test_server_that_is_process_1_of_a_container_is_stopped_from_outside(tiny_llama):
    launcher = own_processes()
    if launcher is None:
        pytest.skip("process namespaces cannot be created")
    with ServerProcess([str(tiny_llama)], launcher=launcher) as server:
        (init,) = psutil.Process(server.process.pid).children()
        (serving,) = init.children()
        assert _wait_ready(serving.pid)["port"] == server.port
        assert run_cli("stop", server.port).returncode == 0
        assert server.process.wait(GONE_S) == 0
