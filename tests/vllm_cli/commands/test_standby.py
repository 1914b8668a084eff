"""`vllm-cli standby` and its subcommands, with real processes."""

import json
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from startup.standby.status import StandbyStatus, TemplateStatus
from tests.support.cli import run_cli
from tests.support.standby_process import OFF, StandbyProcess
from tests.support.waiting import is_gone, wait_until
from vllm_cli.commands.standby import _parse_kinds, _table

_MIB = 1 << 20


@pytest.fixture
def runtime_folder(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder with a short path for sockets. A standby that a test leaves there is stopped at the end."""
    with tempfile.TemporaryDirectory(prefix="vs-", dir="/tmp") as path:
        for name, value in (OFF | {"XDG_RUNTIME_DIR": path}).items():
            monkeypatch.setenv(name, value)
        yield Path(path)
        if list(Path(path).glob("vllm-cli/*.sock")):
            run_cli("standby", "stop")


def _status(invoke) -> dict[str, Any]:
    return dict(json.loads(invoke("standby", "status", "--json").stdout))


def test_the_table_shows_each_template():
    templates = (
        TemplateStatus(
            kind="embedded", state="ready", pid=12, import_s=2.04, num_starts=3, memory_bytes=256 * _MIB, error=None
        ),
        TemplateStatus(
            kind="vllm-eager", state="failed", pid=None, import_s=None, num_starts=0, memory_bytes=0, error="no torch"
        ),
    )
    found = StandbyStatus(pid=11, uptime_s=5.0, memory_bytes=512 * _MIB, models=(), templates=templates)
    assert _table(found) == [
        "standby 11, 0.50 GiB",
        "KIND        STATE             PID  IMPORTS  STARTS  MEMORY",
        "embedded    ready             12   2.0 s    3       0.25 GiB",
        "vllm-eager  failed: no torch  -    -        0       0.00 GiB",
    ]


@pytest.mark.parametrize(
    ("wanted", "kinds"),
    [
        ("embedded", ("embedded",)),
        ("vllm", ("vllm-eager", "vllm-compiled")),
        ("vllm-eager,embedded,vllm-eager", ("vllm-eager", "embedded")),
    ],
)
def test_engines_are_kinds_of_templates(wanted, kinds):
    assert _parse_kinds(wanted) == kinds


@pytest.mark.parametrize("command", ["status", "stop"])
def test_without_a_standby_the_exit_code_is_1(command, runtime_folder, invoke):
    done = invoke("standby", command)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == "No standby runs for this user and Python environment.\n"


@pytest.mark.thorough
def test_a_detached_standby_is_ready_refuses_a_second_one_and_stops(runtime_folder, invoke):
    done = run_cli("standby", "--for", "embedded", "--detach")
    assert done.returncode == 0, done.stderr
    found = _status(invoke)
    assert done.stdout == f"The standby {found['pid']} is ready. Its log is {runtime_folder}/vllm-cli/standby.log\n"
    (template,) = found["templates"]
    assert (template["kind"], template["state"], template["num_starts"]) == ("embedded", "ready", 0)
    assert template["import_s"] > 0
    assert found["memory_bytes"] >= template["memory_bytes"] > 50 * _MIB
    assert os.getsid(found["pid"]) == found["pid"]
    table = invoke("standby", "status")
    assert table.returncode == 0
    assert table.stdout.startswith(f"standby {found['pid']}, ")

    for arguments in (("--detach",), ()):
        second = run_cli("standby", "--for", "embedded", *arguments)
        assert second.returncode == 3
    assert "a standby runs already: `vllm-cli standby status` shows it" in second.stderr  # else in the log
    assert _status(invoke)["pid"] == found["pid"]

    stopped = invoke("standby", "stop")
    assert (stopped.returncode, stopped.stdout) == (0, f"The standby {found['pid']} has stopped.\n")
    wait_until(lambda: is_gone(found["pid"]) and is_gone(template["pid"]))
    assert [path.name for path in (runtime_folder / "vllm-cli").glob("*.sock")] == []


@pytest.mark.thorough
def test_an_idle_standby_ends_and_imports_that_exceed_the_memory_limit_are_dropped():
    with StandbyProcess("--idle-exit", "0.5", is_awaited=False) as standby:
        assert standby.process.wait(120) == 0
        assert "no server was started for 0.5 s" in standby.log
    with StandbyProcess("--max-memory", "1M", is_awaited=False) as standby:
        standby.wait_logged("(--max-memory): the imports for embedded are dropped")
        wait_until(lambda: standby.status()["templates"][0]["state"] == "over the memory limit")
        assert standby.status()["templates"][0]["pid"] is None
