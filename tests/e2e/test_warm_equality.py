"""A forked server equals an executed server by its own description (`self_description`).

A terminal, a systemd user unit, a command as in `docker exec` and a test runner share a standby.
"""

import json
import os
import re
import shutil
import subprocess
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final, NamedTuple

import pytest

from tests.e2e.server_process import ServerProcess
from tests.support.cli import CLI
from tests.support.containers import own_cgroup
from tests.support.ports import free_port
from tests.support.standby_process import OFF, StandbyProcess
from tests.support.terminal import Shell
from tests.support.waiting import wait_until

_DESCRIBING: Final = {"PYTHONPATH": str(Path(__file__).parent / "self_description"), "DESCRIBE_IN": "/nowhere"}
"""Variables with which the processes of a server describe themselves."""
_LAUNCHER: Final = (
    "sh",
    "-c",
    'umask 027; ulimit -n 512; ulimit -c 0; trap "" USR1; cd "$0"; exec "$@" 3</etc/hostname',
)
_OF_THE_MACHINE: Final = re.compile("PATH|HOME|LD_.*|PYTHON.*|TMPDIR|VLLM_CACHE_ROOT|HF_.*|XDG_.*|GRPC_.*|OPENBLAS_.*")
_SESSIONS: Final = {
    "terminal": (
        "TERM=xterm-256color COLORTERM=truecolor SHLVL=1 PWD=/ OLDPWD=/tmp SHELL=/bin/bash LANG=C.UTF-8 "
        "LC_TIME=C LS_COLORS=di=34 SSH_CONNECTION=::1 SSH_TTY=/dev/pts/0 XDG_SESSION_ID=3 XDG_SESSION_TYPE=tty "
        "DBUS_SESSION_BUS_ADDRESS=unix:path=/none COLUMNS=80 LINES=24 USER=me LOGNAME=me _=/usr/bin/vllm-cli"
    ),
    "user_unit": (
        "LANG=C.UTF-8 USER=me LOGNAME=me SHELL=/bin/sh INVOCATION_ID=1a2b JOURNAL_STREAM=8:9 MANAGERPID=1 "
        "SYSTEMD_EXEC_PID=2 DBUS_SESSION_BUS_ADDRESS=unix:path=/none"
    ),
    "docker_exec": "HOSTNAME=1a2b3c",
    "test_runner": "CI=true GITHUB_ACTIONS=true PYTEST_CURRENT_TEST=a::b PYTEST_VERSION=9 COVERAGE_RUN=true NO_COLOR=1",
}


class _Description(NamedTuple):
    api: dict[str, Any]
    engine: dict[str, Any]


def _describe(model: Path, environment: Mapping[str, str], folder: Path) -> _Description:
    folder.mkdir(exist_ok=True)
    environment = {**environment, "DESCRIBE_IN": str(folder), "A_USERS_VARIABLE": "a value"}
    launcher = (*_LAUNCHER, str(folder.parent))
    with ServerProcess([str(model)], environment=environment, launcher=launcher) as server:
        wait_until(lambda: (folder / "api").exists() and (folder / "engine").exists())
        port = str(server.port)
    texts = [(folder / role).read_text().replace(port, "PORT") for role in ("api", "engine")]
    described = _Description(*map(json.loads, texts))
    for inside in (described.api, described.engine):
        for name in ("DESCRIBE_IN", "VCLI_STANDBY"):
            inside["environment"].pop(name, None)
    return described


def test_a_forked_server_equals_an_executed_one(tiny_llama, tmp_path):
    with StandbyProcess(environment=_DESCRIBING) as standby:
        environment = {**_DESCRIBING, **standby.environment}
        warm = _describe(tiny_llama, environment, tmp_path / "warm")
        second = _describe(tiny_llama, environment, tmp_path / "second")
        assert standby.num_starts() == 2
        cold = _describe(tiny_llama, {**environment, **OFF}, tmp_path / "cold")
    ours, theirs = warm.engine.pop("random"), second.engine.pop("random")
    assert not set(ours) & set(theirs), "two forks draw the same random numbers"
    cold.engine.pop("random")
    for description in (warm, cold):
        for name in ("orig_argv", "flags"):  # of the program `python -c` with which an executed forkserver starts
            del description.engine[name]
        del description.api["switch_interval"]  # shorter while the engine is requested (`engine.starter`)
        description.api.pop("torch", None)  # the API process of a cold start has not imported it
        description.api.pop("random", None)
    for ours, theirs in zip(warm, cold, strict=True):
        differing = _differences(ours, theirs)
        assert not differing, json.dumps(differing, indent=1)


def _differences(warm: dict[str, Any], cold: dict[str, Any]) -> dict[str, Any]:
    """All members that differ, with both values, also in inner dictionaries."""
    found: dict[str, Any] = {}
    for name in warm.keys() | cold.keys():
        ours, theirs = warm.get(name), cold.get(name)
        if isinstance(ours, dict) and isinstance(theirs, dict):
            found |= {f"{name} {inner}": values for inner, values in _differences(ours, theirs).items()}
        elif ours != theirs:
            found[name] = ours, theirs
    return found


def _launcher(session: str, cgroup: Path | None) -> tuple[str, ...]:
    """A launcher with the variables of this kind of session. A unit also has limits and a cgroup."""
    others = [name for name in os.environ if not _OF_THE_MACHINE.fullmatch(name)]
    variables = ("env", *(f"--unset={name}" for name in others), *_SESSIONS[session].split())
    if session != "user_unit":
        return variables
    enter = f"echo $$ > {cgroup}/cgroup.procs; " if cgroup else ""
    raise_score = "choom -n 200 -- " if shutil.which("choom") else ""
    return ("sh", "-c", f'{enter}ulimit -S -n 1000; ulimit -S -c 0; exec {raise_score}"$@"', "sh", *variables)


@pytest.fixture
def cgroup() -> Iterator[Path | None]:
    with own_cgroup() as folder:
        yield folder
        if folder is not None:
            wait_until(lambda: not (folder / "cgroup.procs").read_text())


@pytest.fixture
def unit(cgroup: Path | None) -> Iterator[StandbyProcess]:
    """A standby that was started like a user unit."""
    with StandbyProcess(launcher=_launcher("user_unit", cgroup)) as running:
        yield running


def test_starts_of_all_sessions_are_warm(unit, cgroup, tiny_llama):
    serve = (*CLI, "serve", str(tiny_llama), "--preflight-only", "--port", str(free_port()))
    place = [f"{name}={value}" for name, value in unit.environment.items()]
    for session in _SESSIONS:
        command = [*_launcher(session, cgroup), *place, *serve]
        done = subprocess.run(command, capture_output=True, text=True, timeout=120)
        assert done.returncode == 0, (session, done.stderr)
    with Shell(unit.environment) as shell:
        shell.type(f"{' '.join(serve)}\n")
        assert shell.exit_code() == 0, shell.text
    assert unit.num_starts() == len(_SESSIONS) + 1
