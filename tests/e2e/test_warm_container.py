"""A container whose main process is the standby and whose servers start by `docker exec`, in namespaces."""

import json
import os
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.cli import CLI, run_cli
from tests.containers import own_processes
from tests.e2e.server_process import ServerProcess
from tests.processes import GONE_S, end_server
from tests.waiting import is_gone, wait_until


class _Container:
    """Namespaces with a standby as process 1."""

    def __init__(self, process: "subprocess.Popen[bytes]", variables: dict[str, str]) -> None:
        self.process = process
        self.variables = variables
        self._init = psutil.Process(process.pid).children()[0]

    @property
    def exec(self) -> tuple[str, ...]:
        """As `docker exec`."""
        return ("nsenter", "--target", str(self._init.pid), "--user", "--mount", "--pid", "--preserve-credentials")

    def cli(self, *words: str) -> str:
        """The output of `docker exec CONTAINER vllm-cli ...`."""
        return run_cli(*words, launcher=self.exec, environment=self.variables).stdout

    def entries(self) -> dict[str, dict[str, Any]]:
        """What `ps` shows there, by kind."""
        return {entry["kind"]: entry for entry in json.loads(self.cli("ps", "--json"))}

    def is_ready(self) -> bool:
        return '"ready"' in self.cli("standby", "status", "--json")

    def stop(self) -> int:
        """As `docker stop`."""
        self._init.send_signal(signal.SIGTERM)
        return self.process.wait(GONE_S)


@pytest.fixture
def container() -> Iterator[_Container]:
    launcher = own_processes()
    if launcher is None or shutil.which("nsenter") is None:
        pytest.skip("process namespaces cannot be created")
    with tempfile.TemporaryDirectory(prefix="vs-", dir="/tmp") as path:
        variables = {"XDG_RUNTIME_DIR": path, "VCLI_STANDBY": "require"}
        with _running([*launcher, *CLI, "standby", "--for", "embedded"], variables) as process:
            wait_until(lambda: list(Path(path).glob("vllm-cli/*-embedded.sock")), 240)
            started = _Container(process, variables)
            wait_until(started.is_ready, 240)
            yield started
            if process.poll() is None:
                started.stop()


@contextmanager
def _running(command: list[str], variables: dict[str, str]) -> Iterator["subprocess.Popen[bytes]"]:
    process = subprocess.Popen(command, env=os.environ | variables, stdin=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        yield process
    finally:
        family = psutil.Process(process.pid).children(recursive=True) if process.poll() is None else []
        left = end_server(process, family)
    assert not left, f"left behind: {left}"


def test_a_server_that_is_started_in_the_container_is_warm_and_stops(container, model_path):
    with ServerProcess([str(model_path)], launcher=container.exec, environment=container.variables) as server:
        assert "warm start: forked from the standby's process" in server.log
        entries = container.entries()
        assert (entries["server"]["port"], entries["server"]["state"]) == (server.port, "ready")
        assert entries["standby"]["state"] == "ready"
        assert container.cli("stop").endswith("has stopped\n")
        assert server.process.wait(GONE_S) == 0
    assert container.is_ready()


def test_the_end_of_the_container_ends_its_servers(container, model_path):
    with ServerProcess([str(model_path)], launcher=container.exec, environment=container.variables) as server:
        family = psutil.Process(container.process.pid).children(recursive=True)
        assert container.stop() == 0
        wait_until(lambda: all(is_gone(process.pid) for process in family))
        server.process.wait(GONE_S)


def test_a_killed_front_process_leaves_no_process_in_the_container(container, model_path):
    with ServerProcess([str(model_path)], launcher=container.exec, environment=container.variables) as server:
        forked = psutil.Process(container.process.pid).children(recursive=True)
        (front,) = psutil.Process(server.process.pid).children()
        front.kill()
        server.process.wait(GONE_S)
        wait_until(lambda: len(psutil.Process(container.process.pid).children(recursive=True)) == 3)
        assert len(forked) > 3
    assert container.is_ready()
