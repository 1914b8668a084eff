"""The table of `vllm-cli ps` with names of servers that other users chose."""

import os
from pathlib import Path

from vllm_cli.client.running_servers import RunningServer, _parse
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
    assert _parse(["MODEL", "--config", str(pipe)]).positionals == ["MODEL"]
