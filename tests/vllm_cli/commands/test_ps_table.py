"""The table of `vllm-cli ps` with names of servers that other users chose."""

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.waiting import wait_until
from vllm_cli.client.router_status import describe, parse_models
from vllm_cli.client.running_servers import RunningServer, _model, _parse
from vllm_cli.client.server_processes import _pidfds, find_forked_servers
from vllm_cli.commands.ps import _table

_SERVER = RunningServer(
    pid=5,
    port=8000,
    address="http://127.0.0.1:8000",
    model="smol",
    engine="embedded",
    state="ready",
    uptime_s=1.0,
    memory_bytes=1 << 30,
    pids=(5,),
    forked_pid=None,
)
_HOSTILE = "x\n1  http://127.0.0.1:1  ready\x1b[2J"


def test_control_characters_in_names_of_servers_are_escaped() -> None:
    head, row = _table([replace(_SERVER, model=_HOSTILE, state=_HOSTILE)], [])
    assert head.startswith("PID")
    assert row.endswith("x\\n1  http://127.0.0.1:1  ready\\x1b[2J")
    assert row.isprintable()


def test_the_models_of_a_router_follow_it_one_line_each() -> None:
    data = {
        "models": [
            {"id": "qwen", "status": "ready", "for_s": 61.5, "memory_bytes": 1 << 29, "engine": "vllm", "pid": 7},
            {"id": _HOSTILE, "status": "stopped", "for_s": None, "memory_bytes": None, "engine": "other", "pid": None},
        ]
    }
    models = parse_models(data)
    assert models is not None
    server = replace(_SERVER, engine="router", model=describe(models), models=models)
    _, router, qwen, hostile = _table([server], [])
    assert router.endswith("router  2 models, 1 ready")
    assert qwen.split() == ["7", "-", "ready", "1m", "1s", "0.50", "GiB", "vllm", "qwen"]
    assert hostile.split()[:3] == ["-", "-", "stopped"]
    assert hostile.isprintable()
    entry = server.to_dict()
    assert [(each["model"], each["state"], each["since_s"]) for each in entry["models"]] == [
        ("qwen", "ready", 61.5),
        (_HOSTILE, "stopped", None),
    ]


@pytest.mark.parametrize("data", [None, [], {}, {"models": "x"}, {"models": {"id": 1}}, {"model": "smol"}])
def test_a_server_without_a_list_of_models_is_no_router(data: Any) -> None:
    assert parse_models(data) is None


def test_values_of_wrong_types_are_left_out() -> None:
    wrong = {"id": [1], "status": {}, "for_s": True, "memory_bytes": -1, "pid": "7", "engine": None, "reason": 1}
    (model,) = parse_models({"models": [wrong, "x"]}) or ()
    assert set(vars(model).values()) == {"?", None}


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
