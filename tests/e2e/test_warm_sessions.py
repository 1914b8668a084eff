"""A terminal, a systemd user unit, a command as of `docker exec` and a test runner share a standby."""

import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest

from tests.cgroups import own_cgroup
from tests.cli import CLI
from tests.e2e.shell import Shell
from tests.ports import free_port
from tests.standby_process import StandbyProcess
from tests.waiting import wait_until

_OF_THE_MACHINE: Final = re.compile("PATH|HOME|LD_.*|PYTHON.*|TMPDIR|VLLM_CACHE_ROOT|HF_.*|XDG_.*|GRPC_.*")
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


def _launcher(session: str, cgroup: Path | None) -> tuple[str, ...]:
    """Starts a command as in this kind of session: variables; for a unit, also limits and a cgroup."""
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
def standby(cgroup: Path | None) -> Iterator[StandbyProcess]:
    """A standby that was started as a user unit."""
    with StandbyProcess(launcher=_launcher("user_unit", cgroup)) as running:
        yield running


def test_starts_of_all_sessions_are_warm(standby, cgroup, tiny_llama):
    serve = (*CLI, "serve", str(tiny_llama), "--preflight-only", "--port", str(free_port()))
    place = [f"{name}={value}" for name, value in standby.environment.items()]
    for session in _SESSIONS:
        command = [*_launcher(session, cgroup), *place, *serve]
        done = subprocess.run(command, capture_output=True, text=True, timeout=120)
        assert done.returncode == 0, (session, done.stderr)
    with Shell(standby.environment) as shell:
        shell.type(f"{' '.join(serve)}\n")
        assert shell.exit_code() == 0, shell.text
    assert standby.num_starts() == len(_SESSIONS) + 1
