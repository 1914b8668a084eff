"""Terminals, shells and job control have the same effect on a warm start as on a cold start."""

import os
import re
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Self

import psutil
import pytest

from tests.support.http_client import ask
from tests.support.ports import free_port
from tests.support.standby_process import StandbyProcess
from tests.support.terminal import INTERRUPT, QUIT, SUSPEND, Shell, serve_command
from tests.support.tiers import slow_but_for
from tests.support.waiting import GONE_S, is_gone, wait_until
from vllm_cli.client.running_servers import RunningServer, find_servers

_READY = "ready after"


class _Job:
    """The server that a shell starts."""

    def __init__(self, model: Path) -> None:
        self.port = free_port()
        self.command = serve_command(str(model), "--served-model-name", "smol", "--port", str(self.port))

    def find(self) -> RunningServer:
        """The running server of this job."""
        (server,) = [s for s in find_servers(with_state=False) if s.port == self.port]
        return server

    def start(self, shell: Shell, before: str = "", after: str = "") -> RunningServer:
        """Types the command between other words, and waits until the server is ready."""
        shell.type(f"{before}{self.command}{after}\n")
        shell.wait_for(_READY)
        server = self.find()
        shell.watch(list(server.pids))
        return server

    @contextmanager
    def running(self, environment: dict[str, str], launcher: tuple[str, ...] = (), **options: Any) -> Iterator[Any]:
        """Starts the command without a terminal. Yields its process once the server is ready."""
        words = [*launcher, *self.command.split()]
        streams = {"stdin": subprocess.DEVNULL, "stderr": subprocess.DEVNULL} | options
        with subprocess.Popen(words, env=os.environ | environment, **streams) as process:
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
    """A start that waits at its beginning, because its configuration file is a FIFO without a writer."""

    def __init__(self, folder: Path) -> None:
        self._path = folder / "config.yaml"
        self.flag = f"--config {self._path}"
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
