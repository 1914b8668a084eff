"""The table of `ps`, and the waits of `stop`. `tests/e2e/test_ps_and_stop.py` has running servers."""

import io
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from math import inf

import pytest

from startup.arguments.errors import InputError
from startup.storage.run_record import RunRecord
from startup.vllm.serving.start_metrics import GraphProgress
from vllm_cli.client.running_servers import RunningServer, address_of, describe, parse_models
from vllm_cli.commands import stop
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


def test_an_impossible_port_is_no_address_and_control_characters_in_names_of_servers_are_escaped():
    assert address_of(RunRecord(engine="vllm", address="http://0.0.0.0:99999")) is None
    head, row = _table([replace(_SERVER, model=_HOSTILE, state=_HOSTILE)], [])
    assert head.startswith("PID")
    assert row.endswith("x\\n1  http://127.0.0.1:1  ready\\x1b[2J  -")
    assert row.isprintable()


@pytest.mark.parametrize(
    ("graphs", "shown"),
    [
        (GraphProgress(20, 102).to_fields(), "cold, 3.5 s, 20 of 102 CUDA graphs"),
        (GraphProgress(102, 102).to_fields(), "cold, 3.5 s, 102 CUDA graphs"),
        (None, "cold, 3.5 s"),
        ("of another release", "cold, 3.5 s"),
    ],
)
def test_cuda_graphs_are_shown(graphs, shown):
    start = {"start_mode": "cold", "ready_s": 3.5, "cuda_graphs": graphs}
    _, row = _table([replace(_SERVER, start=start)], [])
    assert f"  {shown}  embedded" in row


def test_the_models_of_a_router_follow_it_one_line_each():
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
    assert router.split()[-7:] == ["-", "router", "2", "models,", "1", "ready", "-"]
    assert qwen.split() == ["7", "-", "ready", "1m", "1s", "0.50", "GiB", "-", "vllm", "qwen", "-"]
    assert hostile.split()[:3] == ["-", "-", "stopped"]
    assert hostile.isprintable()
    entry = server.to_dict()
    assert [(each["model"], each["state"], each["since_s"]) for each in entry["models"]] == [
        ("qwen", "ready", 61.5),
        (_HOSTILE, "stopped", None),
    ]


def test_the_start_is_told_and_reasons_that_matter_follow_the_table():
    cold = {"start_mode": "cold", "reason": "no standby runs", "compile": "", "compile_reason": "", "ready_s": 9.06}
    plain = {"start_mode": "plain", "reason": "VCLI_PLAIN_VLLM is set"}
    compiled = {**cold, "start_mode": "warm", "reason": "", "compile": "compiled", "compile_reason": "flags x.y"}
    servers = [replace(_SERVER, pid=pid, start=start) for pid, start in enumerate((cold, plain, compiled, None))]
    _, *rows = _table(servers, [])
    assert [row.partition("GiB")[2].partition("embedded")[0].strip() for row in rows[:4]] == [
        "cold, 9.1 s",
        "plain",
        "warm, 9.1 s",
        "-",
    ]
    assert rows[4:] == ["1: plain: VCLI_PLAIN_VLLM is set", "2: warm; model compiled: flags x.y"]
    standby = RunningServer(kind="standby", pid=9, state="ready", uptime_s=1.0, memory_bytes=0, pids=(9,))
    assert _table(servers, [standby])[6:] == ["0: cold: no standby runs", *rows[4:]]


def test_values_of_wrong_types_are_left_out():
    wrong = {"id": [1], "status": {}, "for_s": True, "memory_bytes": -1, "pid": "7", "engine": None, "reason": 1}
    wrong |= {"aliases": {}, "progress": [1], "num_running": "1"}
    (model,) = parse_models({"models": [wrong, "x"]}) or ()
    assert set(vars(model).values()) == {"?", None, ()}
    for data in (None, [], {}, {"models": "x"}, {"models": {"id": 1}}, {"model": "smol"}):
        assert parse_models(data) is None, "it is no router"


@contextmanager
def _process(code: str = "pass") -> Iterator["subprocess.Popen[bytes]"]:
    """A process that runs the code, then sleeps. Its end must be the test's."""
    arguments = [sys.executable, "-c", f"import signal, time; {code}; print(flush=True); time.sleep(600)"]
    with subprocess.Popen(arguments, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None and process.stdout.readline()
        yield process
        process.kill()


def test_a_killed_process_has_ended_although_its_parent_does_not_wait_for_it(monkeypatch):
    monkeypatch.setattr(stop, "_AFTER_KILL_S", inf)
    with _process("signal.signal(signal.SIGTERM, signal.SIG_IGN)") as process:
        stopping = stop._StoppingServer(replace(_SERVER, pid=process.pid, pids=(process.pid,)))
        assert stopping.alive()
        stopping.kill()
        assert not stopping.alive()
        assert stopping.describe().endswith("was killed")


def test_a_number_that_is_the_port_of_one_server_and_the_process_of_another_stops_neither():
    servers = [_SERVER, replace(_SERVER, pid=8000, port=None, address="unix:/s")]
    for server in servers:
        assert stop._choose(servers, server.address) == [server]
    assert stop._choose(servers, "5") == [_SERVER]
    assert stop._choose(servers, "None") == []
    with pytest.raises(InputError, match=r"2 servers have port or process 8000: .*unix:/s .*by its address"):
        stop._choose(servers, "8000")


def test_the_server_that_replaces_the_stopped_one_is_named(invoke, monkeypatch):
    """With some service managers, the new server starts before the old one has exited."""
    with _process() as process:
        found = iter(([replace(_SERVER, pid=process.pid, pids=(process.pid,))], [replace(_SERVER, pid=7)]))
        monkeypatch.setattr(stop, "find_servers", lambda **_: next(found))
        done = invoke("stop")
    assert "Notice: smol is served again by process 7: stop its supervisor.\n" in done.stderr


@pytest.mark.parametrize(
    ("arguments", "is_terminal", "answer", "code"),
    [
        ((), True, "n\n", 1),
        ((), True, "y\n", 0),
        (("--yes",), True, "", 0),
        ((), False, "", 2),
        (("--yes",), False, "", 0),
    ],
    ids=["no", "yes", "flag", "script", "script_with_flag"],
)
def test_all_servers_are_listed_and_stopped_after_a_yes(invoke, monkeypatch, arguments, is_terminal, answer, code):
    with _process() as process:
        monkeypatch.setattr(stop, "find_servers", lambda **_: [replace(_SERVER, pid=process.pid, pids=(process.pid,))])
        stdin = io.StringIO(answer)
        stdin.isatty = lambda: is_terminal  # type: ignore[method-assign]
        monkeypatch.setattr(sys, "stdin", stdin)
        done = invoke("stop", "--all", *arguments)
        assert (process.poll() is not None) == (code == 0)
        assert done.returncode == code
        question = "Stop all 1?" if is_terminal else "Error: Give --yes to stop all 1.\n"
        assert (f"smol on http://127.0.0.1:8000\n{question}" in done.stderr) == (not arguments)
