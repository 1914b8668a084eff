"""Servers in containers with a read-only root, as any user, and beside a standby."""

import json
import os
import shutil
import signal
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.e2e.process_tree import for_each_process
from tests.e2e.server_process import ServerProcess
from tests.support.cli import CLI, run_cli
from tests.support.containers import as_user, on_read_only_root, own_processes
from tests.support.processes import GONE_S, assert_gone
from tests.support.program import Program
from tests.support.waiting import wait_until

_HOMELESS = ("env", "-u", "HOME", "-u", "XDG_CACHE_HOME", "-u", "TMPDIR", "-u", "VLLM_CACHE_ROOT")


@pytest.mark.skipif(os.getuid() != 0, reason="needs root to change the user")
def test_server_runs_as_an_arbitrary_user_without_a_writable_folder(model_path):
    user = as_user(12345, 12345, Path(sys.executable), model_path / "model.safetensors")
    if user is None:
        pytest.skip("another user cannot read the interpreter or the model here")
    read_only = on_read_only_root()
    launcher = (*_HOMELESS, *(read_only or ()), *user)
    arguments = [str(model_path), "--served-model-name", "smol", "--max-model-len", "256"]
    with ServerProcess(arguments, launcher=launcher) as server:
        with server.openai() as client:
            assert client.completions.create(model="smol", prompt="Hello", max_tokens=3).choices[0].text
        assert set(for_each_process(server, lambda process: process.uids().effective)) == {12345}
        assert "nothing is cached between starts: /.cache/vllm/vllm_cli cannot be written to" in server.log
        if read_only and not any(map(os.path.ismount, ("/tmp", "/var/tmp"))):  # these are not the root's
            assert "no temporary file can be created in /tmp" in server.log
        assert server.terminate() == 0


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

    def entries(self) -> dict[str, dict[str, Any]]:
        """Kind -> entry of `vllm-cli ps` in the container."""
        return {entry["kind"]: entry for entry in json.loads(self.cli("ps", "--json"))}

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
        entries = container.entries()
        assert (entries["server"]["port"], entries["server"]["state"]) == (server.port, "ready")
        assert entries["standby"]["state"] == "ready"
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
