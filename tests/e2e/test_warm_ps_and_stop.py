"""`vllm-cli ps` and `vllm-cli stop` with servers that were forked from a standby."""

import json
import os
import signal
from typing import Any

import psutil
import pytest

from tests.cli import run_cli
from tests.e2e.server_process import ServerProcess
from tests.processes import GONE_S
from tests.waiting import is_gone, wait_until


def _entries(**options: Any) -> list[dict[str, Any]]:
    entries: list[dict[str, Any]] = json.loads(run_cli("ps", "--json", **options).stdout)
    return entries


def _entry(server: ServerProcess, **options: Any) -> dict[str, Any]:
    """The only entry that has one of the server's processes."""
    forked = {process.pid for process in server.family()}
    (entry,) = [e for e in _entries(**options) if forked & set(e["pids"])]
    return entry


def test_a_forked_server_is_one_server_of_the_process_that_the_user_started(start_tiny_server, standby):
    with start_tiny_server(environment=standby.environment) as server:
        entry = _entry(server)
        assert (entry["pid"], entry["kind"], entry["engine"]) == (server.process.pid, "server", "embedded")
        assert (entry["port"], entry["state"], entry["model"]) == (server.port, "ready", "smol")
        assert psutil.Process(entry["forked_pid"]).parent() == standby.template()
        family = {process.pid for process in psutil.Process(entry["forked_pid"]).children(recursive=True)}
        assert {entry["pid"], entry["forked_pid"]} | family == set(entry["pids"])
        assert not {standby.process.pid, standby.template().pid} & set(entry["pids"])
        assert entry["memory_bytes"] > 50 << 20


@pytest.mark.parametrize("which", ["port", "pid", "forked_pid"])
def test_a_forked_server_is_stopped_by_port_and_by_both_processes(which, start_tiny_server, standby):
    with start_tiny_server(environment=standby.environment) as server:
        entry = _entry(server)
        done = run_cli("stop", entry[which])
        assert (done.returncode, done.stdout) == (0, f"smol on {server.url} has stopped\n")
        assert server.process.wait(GONE_S) == 0
        wait_until(lambda: all(map(is_gone, entry["pids"])))
    assert standby.process.poll() is None


@pytest.mark.parametrize("which", ["pid", "forked_pid"])
def test_a_stopped_process_of_a_forked_server_is_killed_with_all_others(which, start_tiny_server, standby):
    with start_tiny_server(environment=standby.environment) as server:
        entry = _entry(server)
        os.kill(entry[which], signal.SIGSTOP)
        done = run_cli("stop", entry[which], "--timeout", "0.5")
        assert done.returncode == 4
        assert server.process.wait(GONE_S) == -signal.SIGKILL
        wait_until(lambda: all(map(is_gone, entry["pids"])))


def test_the_standby_is_listed_after_the_servers_and_stop_all_leaves_it(start_tiny_server, standby):
    with start_tiny_server(environment=standby.environment):
        kinds = [entry["kind"] for entry in _entries()]
        assert kinds == sorted(kinds)
    (entry,) = [e for e in _entries(environment=standby.environment) if e["pid"] == standby.process.pid]
    template_pid = standby.template().pid
    assert (entry["kind"], entry["state"], entry["pids"]) == ("standby", "ready", [entry["pid"], template_pid])
    assert entry["memory_bytes"] > 50 << 20
    assert {name for name, value in entry.items() if value is None} == {
        "port", "address", "model", "engine", "forked_pid", "owner_pid",
    }  # fmt: skip
    (line,) = [line for line in run_cli("ps").stdout.splitlines() if line.startswith(f"{entry['pid']} ")]
    assert line.split()[-2:] == ["standby", "-"]
    for pid in entry["pids"]:
        done = run_cli("stop", pid)
        assert (done.returncode, "`vllm-cli standby stop`" in done.stderr) == (1, True)
    assert standby.process.poll() is None


@pytest.mark.parametrize("method", ["forkserver", "fork", "spawn"])
def test_a_key_on_the_command_line_is_masked_in_all_processes(method, start_tiny_server, standby):
    environment = standby.environment | {"VLLM_WORKER_MULTIPROC_METHOD": method}
    with start_tiny_server("--api-key", "s3cret-key", environment=environment) as server:
        entry = _entry(server)
        words = [" ".join(psutil.Process(pid).cmdline()) for pid in entry["pids"] if not is_gone(pid)]
        assert words[:2] == [words[0]] * 2
        assert "**********" in words[0]
        assert [line for line in words if "s3cret" in line] == []
        assert [line for line in words if "dormant" in line] == []
