"""The table of `vllm-cli ps` with names of servers that other users chose."""

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest

from tests.waiting import wait_until
from vllm_cli.client.running_servers import RunningServer, _model, _parse
from vllm_cli.client.server_processes import _pidfds, find_forked_servers
from vllm_cli.commands.ps import _table


def test_control_characters_in_names_of_servers_are_escaped() -> None:
    hostile = "x\n1  http://127.0.0.1:1  ready\x1b[2J"
    server = RunningServer(
        pid=5,
        port=8000,
        address="http://127.0.0.1:8000",
        model=hostile,
        engine="embedded",
        state=hostile,
        uptime_s=1.0,
        memory_bytes=1 << 30,
        pids=(5,),
        forked_pid=None,
    )
    head, row = _table([server], [])
    assert head.startswith("PID")
    assert row.endswith("x\\n1  http://127.0.0.1:1  ready\\x1b[2J")
    assert row.isprintable()


def test_a_server_whose_configuration_is_a_pipe_is_listed(tmp_path: Path) -> None:
    """Opening the pipe would wait until another process writes to it."""
    pipe = tmp_path / "config.yaml"
    os.mkfifo(pipe)
    assert _parse(psutil.Process(), ["MODEL", "--config", str(pipe)]).positionals == ["MODEL"]


def test_a_configuration_is_read_in_the_folder_of_its_process(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text("served-model-name: name\n")
    with _sleeper(cwd=tmp_path) as process:
        assert _model(_parse(process, ["MODEL", "--config", "config.yaml"])) == "name"


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
def test_a_configuration_of_another_users_process_is_not_read(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text("served-model-name: name\n")
    with _sleeper(user=12345) as process:
        assert _model(_parse(process, ["MODEL", "--config", str(tmp_path / "config.yaml")])) == "MODEL"


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
@pytest.mark.parametrize("user", [0, 12345])
def test_only_a_process_of_the_same_user_counts_as_the_client_of_a_server(user: int) -> None:
    """Any process can open a pidfd of any other one."""
    with _sleeper() as server, _sleeper(pidfd_of=server.pid, user=user) as holder:
        wait_until(lambda: server.pid in _pidfds(holder.pid))
        assert find_forked_servers([server, holder]) == ({server.pid: holder.pid} if user == 0 else {})


@contextmanager
def _sleeper(*, pidfd_of: int = 0, user: int = 0, cwd: Path | None = None) -> Iterator[psutil.Process]:
    """A process, of another user if one is given, that may hold a pidfd."""
    code = "import os, sys, time; held = {0} and os.pidfd_open({0}); {1} and os.setuid({1}); time.sleep(600)"
    words = [sys.executable, "-I", "-S", "-c", code.format(pidfd_of, user)]
    with subprocess.Popen(words, cwd=cwd) as process:
        try:
            wait_until(lambda: psutil.Process(process.pid).uids().real == (user or os.getuid()))
            yield psutil.Process(process.pid)
        finally:
            process.kill()
