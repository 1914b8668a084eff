"""`vllm-cli ps` and `vllm-cli stop`, on servers that run."""

import json
import os
import signal
import subprocess
import sys
from typing import Any

import psutil

_GONE_S = 60.0


def _cli(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "vllm_cli", *words], capture_output=True, text=True, timeout=200)


def _entry(server: Any) -> dict[str, Any]:
    entries = [e for e in json.loads(_cli("ps", "--json").stdout) if e["pid"] == server.process.pid]
    assert len(entries) == 1
    return dict(entries[0])


def test_server_is_found_and_stopped_by_its_port(start_server: Any) -> None:
    with start_server() as server:
        entry = _entry(server)
        assert entry["port"] == server.port
        assert entry["address"] == server.url
        assert entry["model"] == "smol"
        assert entry["state"] == "ready"
        assert entry["uptime_s"] > 0
        assert entry["pids"][0] == server.process.pid
        assert set(entry["pids"]) == {p.pid for p in server.family()}
        engine_bytes = server.engine().memory_full_info().pss
        assert entry["memory_bytes"] > engine_bytes / 2
        line = next(line for line in _cli("ps").stdout.splitlines() if line.startswith(f"{server.process.pid} "))
        assert server.url in line
        assert "smol" in line

        family = server.family()
        run = _cli("stop", str(server.port))
        assert run.returncode == 0
        assert "smol" in run.stdout
        assert server.process.wait(_GONE_S) == 0
        assert not psutil.wait_procs(family, timeout=_GONE_S)[1]
        assert server.process.pid not in [e["pid"] for e in json.loads(_cli("ps", "--json").stdout)]


def test_server_that_does_not_stop_in_time_is_killed(start_server: Any) -> None:
    with start_server(wait=False) as server:
        server.wait_listening()
        assert _entry(server)["state"] in ("starting", "not listening", "silent", "ready")
        family = server.family()
        os.kill(server.process.pid, signal.SIGSTOP)
        run = _cli("stop", str(server.process.pid), "--timeout", "0.5")
        assert run.returncode == 4
        assert "was killed" in run.stdout
        assert server.process.wait(_GONE_S) == -signal.SIGKILL
        assert not psutil.wait_procs(family, timeout=_GONE_S)[1]


def test_nobody_is_stopped_for_a_number_that_nobody_has() -> None:
    unused = 4_200_000_000
    run = _cli("stop", str(unused))
    assert run.returncode == 1
    assert str(unused) in run.stderr


def test_all_and_one_contradict_each_other() -> None:
    assert _cli("stop", "--all", "1").returncode == 2
