"""The table of `vllm-cli ps` with names of servers that other users chose."""

from vllm_cli.client.running_servers import RunningServer
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
    )
    head, row = _table([server])
    assert head.startswith("PID")
    assert row.endswith("x\\n1  http://127.0.0.1:1  ready\\x1b[2J")
    assert row.isprintable()
