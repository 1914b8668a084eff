"""A warm start equals a cold one in its own description, and on terminals, in shells and with job control."""

import json
import os
import re
import shutil
import signal
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Final, NamedTuple, Self

import psutil
import pytest

from tests.e2e.server_process import ServerProcess
from tests.support.cli import CLI
from tests.support.containers import own_cgroup
from tests.support.http_client import ask
from tests.support.marks import slow_but_for
from tests.support.ports import free_port
from tests.support.standby_process import OFF, StandbyProcess
from tests.support.terminal import INTERRUPT, QUIT, SUSPEND, Shell, serve_command
from tests.support.waiting import GONE_S, is_gone, wait_until
from vllm_cli.client.running_servers import RunningServer, find_servers

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


class _Job:
    """The server that a shell starts."""

    def __init__(self, model: Path) -> None:
        self.port = free_port()
        self.command = serve_command(str(model), "--served-model-name", "smol", "--port", str(self.port))

    def find(self) -> RunningServer:
        (server,) = [s for s in find_servers(with_state=False) if s.port == self.port]
        return server

    def start(self, shell: Shell, before: str = "", after: str = "") -> RunningServer:
        """Types the command between other words, and waits until the server is ready."""
        shell.type(f"{before}{self.command}{after}\n")
        shell.wait_for("ready after")
        server = self.find()
        shell.watch(list(server.pids))
        return server

    @contextmanager
    def running(self, environment: dict[str, str], launcher: tuple[str, ...] = (), **options: Any) -> Iterator[Any]:
        """Starts the command without a terminal. Yields its process once the server is ready."""
        arguments = [*launcher, *self.command.split()]
        streams = {"stdin": subprocess.DEVNULL, "stderr": subprocess.DEVNULL} | options
        with subprocess.Popen(arguments, env=os.environ | environment, **streams) as process:
            try:
                wait_until(lambda: self.health() == 200 or process.poll() is not None, 240)
                assert process.poll() is None
                yield process
            finally:
                process.kill()

    def health(self) -> int:
        return ask(f"http://127.0.0.1:{self.port}/health").status

    def states(self, pids: tuple[int, ...]) -> set[str]:
        """The states of these processes, without helpers of the start that have ended since."""
        found = set()
        for pid in pids:
            with suppress(psutil.NoSuchProcess):
                found.add(psutil.Process(pid).status())
        return found - {psutil.STATUS_ZOMBIE}


@pytest.fixture
def job(tiny_llama: Path) -> _Job:
    return _Job(tiny_llama)


@pytest.fixture
def warm(standby: StandbyProcess) -> dict[str, str]:
    """Variables of a warm start. These tests need no cold start, where kernel or shell cause the effect."""
    return standby.environment


class _SlowStart:
    """A start that waits at its beginning, because a file of its settings is a FIFO without a writer."""

    def __init__(self, folder: Path) -> None:
        self._path = folder / "logging.json"
        self.flag = f"--log-config-file {self._path}"
        self._fd = -1
        os.mkfifo(self._path)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._fd >= 0:
            os.close(self._fd)

    def wait_reading(self) -> None:
        """Waits until the start is in read(2). A signal just before read(2) would have no effect."""
        wait_until(self._open)  # possible only once the start has opened the file
        wait_until(lambda: psutil.STATUS_SLEEPING in self._reader_states())

    def _open(self) -> bool:
        with suppress(OSError):
            self._fd = os.open(self._path, os.O_WRONLY | os.O_NONBLOCK)
        return self._fd >= 0

    def _reader_states(self) -> Iterator[str]:
        for process in psutil.process_iter():
            with suppress(OSError, psutil.Error):  # ended or closed meanwhile, or of another user
                links = Path(f"/proc/{process.pid}/fd").iterdir()
                if process.pid != os.getpid() and any(link.readlink() == self._path for link in links):
                    yield process.status()


@pytest.mark.parametrize("flags", slow_but_for(["", " --idle-stop 1h --standby off"], ""))
def test_ctrl_z_stops_all_processes_and_fg_and_bg_continue_them(flags, cold_or_warm, job):
    with Shell(cold_or_warm) as shell:
        pids = job.start(shell, after=flags).pids
        for resume in ("bg", "fg"):
            shell.type(SUSPEND)
            shell.wait_for("Stopped")
            wait_until(lambda: job.states(pids) == {psutil.STATUS_STOPPED})
            shell.type(f"{resume}\n")
            wait_until(lambda: psutil.STATUS_STOPPED not in job.states(pids))
            assert job.health() == 200
            if resume == "bg":
                assert shell.exit_code() == 0
                shell.type("fg\n")
                wait_until(lambda: os.tcgetpgrp(shell.terminal_fd) == os.getpgid(pids[0]))
        shell.type(INTERRUPT)
        assert shell.exit_code() == 0
        wait_until(lambda: all(map(is_gone, pids)))
        assert "Traceback" not in shell.text


@pytest.mark.parametrize(("key", "code"), [(INTERRUPT, 130), (QUIT, 131)], ids=["interrupt", "quit"])
def test_keys_end_a_start(key, code, cold_or_warm, job, tmp_path):
    with _SlowStart(tmp_path) as start, Shell(cold_or_warm) as shell:
        shell.type(f"ulimit -c 0; {job.command} {start.flag}\n")
        start.wait_reading()
        shell.type(key)
        assert shell.exit_code() == code
        assert "Traceback" not in shell.text


def test_a_server_that_crashes_ends_its_front_process_by_the_same_signal(warm, job):
    with job.running(warm) as process:
        server = job.find()
        os.kill(server.entry_pids[-1], signal.SIGSEGV)
        assert process.wait(GONE_S) == -signal.SIGSEGV
        wait_until(lambda: all(map(is_gone, server.pids)))


def test_a_closed_terminal_ends_the_server(warm, job):
    with Shell(warm) as shell:
        pids = job.start(shell).pids
        shell.close_terminal()
        wait_until(lambda: all(map(is_gone, pids)))


@pytest.mark.parametrize("launcher", slow_but_for(["nohup", "setsid"], "nohup"))
def test_a_detached_server_survives_its_terminal(launcher, warm, job, tmp_path):
    with Shell(warm) as shell:
        shell.type(f"{launcher} {job.command} > {tmp_path}/log 2>&1 < /dev/null &\n")
        wait_until(lambda: job.health() == 200, 240)
        server = job.find()
        shell.watch(list(server.pids))
        shell.close_terminal()
        shell.process.wait(GONE_S)
        assert job.health() == 200
        os.kill(server.pid, signal.SIGTERM)
        wait_until(lambda: all(map(is_gone, server.pids)))


def test_a_server_runs_with_closed_streams(warm, job):
    with job.running(warm, ("sh", "-c", 'exec "$@" <&- >&-', "sh"), stdin=None) as process:
        process.send_signal(signal.SIGTERM)
        assert process.wait(GONE_S) == 0


def test_the_terminal_shows_progress_in_its_width(job):
    """Only a cold start is tested. A warm start of this model ends before the first line of progress."""
    with Shell({"VCLI_STANDBY": "off"}, num_columns=60) as shell:
        job.start(shell)
        shell.type(INTERRUPT)
        assert shell.exit_code() == 0
        lines = re.findall(r"\r\x1b\[K( *[\d.]+ s  [^\r\n\x1b]+)", shell.output)
        assert lines
        assert max(map(len, lines)) < 60
