"""Servers in a container beside a standby. `tests/containers` has any user and a read-only root."""

import json
import os
import shutil
import signal
import tempfile
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from tests.e2e.server_process import ServerProcess
from tests.support.cli import CLI, run_cli
from tests.support.containers import own_processes
from tests.support.processes import GONE_S, assert_gone
from tests.support.program import Program
from tests.support.waiting import wait_until


class _Container:
    """Namespaces with a standby as process 1."""

    def __init__(self, program: Program, variables: dict[str, str]) -> None:
        self.program = program
        self.variables = variables
        self._init = program.root.children()[0]

    @property
    def exec(self) -> tuple[str, ...]:
        """A launcher that runs a command in the container, as `docker exec` does."""
        return ("nsenter", "--target", str(self._init.pid), "--user", "--mount", "--pid", "--preserve-credentials")

    def cli(self, *words: str) -> str:
        """The output of `docker exec CONTAINER vllm-cli ...`."""
        return run_cli(*words, launcher=self.exec, environment=self.variables).stdout

    def listed(self) -> dict[str, tuple[int | None, str]]:
        """Kind -> port and state in `vllm-cli ps` in the container."""
        return {entry["kind"]: (entry["port"], entry["state"]) for entry in json.loads(self.cli("ps", "--json"))}

    def is_ready(self) -> bool:
        return '"ready"' in self.cli("standby", "status", "--json")

    def stop(self) -> int:
        """Stops the container as `docker stop` does."""
        self._init.send_signal(signal.SIGTERM)
        return self.program.process.wait(GONE_S)


@pytest.fixture
def container() -> Iterator[_Container]:
    launcher = own_processes()
    if launcher is None or shutil.which("nsenter") is None:
        pytest.skip("process namespaces cannot be created")
    with tempfile.TemporaryDirectory(prefix="vs-", dir="/tmp") as path:
        variables = {"XDG_RUNTIME_DIR": path, "VCLI_STANDBY": "require"}
        with Program([*launcher, *CLI, "standby", "--for", "embedded"], os.environ | variables) as program:
            program.wait(lambda: list(Path(path).glob("vllm-cli/*-embedded.sock")))
            started = _Container(program, variables)
            program.wait(started.is_ready)
            yield started
            if program.process.poll() is None:
                started.stop()


def test_servers_that_are_started_in_the_container_are_warm_and_end_alone_and_with_it(container, tiny_llama):
    """One server is stopped. The second server's `serve` is killed. The last ends with the container."""
    with ServerProcess([str(tiny_llama)], launcher=container.exec, environment=container.variables) as server:
        assert "warm start: forked from the standby's process" in server.log
        expected = {"server": (server.port, "ready"), "standby": (None, "ready")}
        wait_until(lambda: container.listed() == expected)  # on a busy machine, probes may time out
        assert container.cli("stop").endswith("has stopped\n")
        assert server.process.wait(GONE_S) == 0
    assert container.is_ready()

    with ServerProcess([str(tiny_llama)], launcher=container.exec, environment=container.variables) as server:
        forked = container.program.root.children(recursive=True)
        (front,) = psutil.Process(server.process.pid).children()
        front.kill()
        server.process.wait(GONE_S)
        wait_until(lambda: len(container.program.root.children(recursive=True)) == 3)
        assert len(forked) > 3
    assert container.is_ready()

    with ServerProcess([str(tiny_llama)], launcher=container.exec, environment=container.variables) as server:
        family = container.program.root.children(recursive=True)
        assert container.stop() == 0
        assert_gone(family)
        server.process.wait(GONE_S)
