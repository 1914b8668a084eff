"""`vllm-cli serve --detach`: starts the server in a session of its own, and waits until it is ready."""

import fcntl
import os
import signal
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import closing, suppress
from functools import partial
from pathlib import Path
from typing import IO, Final, TypeVar

import click

from base.exit_codes import OK, START_FAILED
from base.machine.processes import is_alive
from startup.ground.errors import StartupError
from startup.ground.run_record import MODE, read_run_records, record_folder
from startup.standby.front_process import serve_warm
from vllm_cli.client.running_servers import address_of
from vllm_cli.client.waiting import Readiness, WaitOptions, wait_for_server
from vllm_cli.supervised_command import last_lines
from vllm_cli.terminal import Reporter

T = TypeVar("T")

_PREFIX: Final = "serve-"
_MOST_LOGS: Final = 20
"""How many logs are kept. A start removes the oldest ones, but never the log of a running server."""
_POLL_S: Final = 0.05
_CLOSED_S: Final = 20.0
"""Seconds until a server that closes every connection counts as running.

Under TLS 1.2, some servers close connections of clients without a certificate.
"""
_STOP_S: Final = 60.0
"""Seconds after which a cancelled start is killed."""


def start_detached(words: Sequence[str]) -> int | None:
    """Starts the server in a fork. Returns 0 once the server is ready, or the exit code of a failed start.

    Also returns in the fork: None if the fork itself becomes the server, or the server's exit code if a
    standby forks the server.
    """
    path, log = _create_log()
    return detach(partial(_begin_again, words), path, log, _wait)


def detach(run: Callable[[], T], path: Path, log: IO[bytes], wait: Callable[[int, Reporter], str | None]) -> int | T:
    """Runs a function in a fork with a session of its own. Ctrl-C and SIGTERM during the wait end the fork.

    The calling process must have only one thread. The function returns in both processes. It forks instead of
    starting a new program, because a new command line would show secrets that this process hides.

    Args:
        run: runs in the fork. In the fork, this function returns the result of `run`.
        path: the path of the log.
        log: receives the fork's output. This function closes it.
        wait: takes the fork's process id. Returns a text once the fork is ready, None if the fork has ended.
    """
    for stream in filter(None, (sys.stdout, sys.stderr)):
        stream.flush()
    pid = os.fork()
    if pid == 0:
        _enter_session(log)
        return run()
    log.close()
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))
    try:
        with closing(Reporter()) as reporter:
            outcome = wait(pid, reporter)
    except BaseException:
        _end(pid)
        raise
    if outcome is None:
        code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        code = 128 - code if code < 0 else code or START_FAILED
        click.echo(f"{last_lines(path)}\nError: the start ended with exit code {code}. Its log is {path}", err=True)
        return code
    click.echo(f"{outcome}. Its log is {path}")
    return OK


def _enter_session(log: IO[bytes]) -> None:
    os.setsid()
    with log, open(os.devnull, "rb") as nothing:  # noqa: PTH123
        for source, number in ((nothing, 0), (log, 1), (log, 2)):
            os.dup2(source.fileno(), number)


def _begin_again(words: Sequence[str]) -> int | None:
    """Repeats the first steps of a start, as if this process had been started with these words."""
    words = ["serve", *words]
    sys.orig_argv[len(sys.orig_argv) - len(sys.argv) + 1 :] = words
    sys.argv[1:] = words
    return serve_warm(words[1:])


def _create_log() -> tuple[Path, IO[bytes]]:
    """Creates a log for this user only. A lock protects it from removal while a process has it open."""
    try:
        folder = record_folder()
        _remove_old(folder)
        path = f"{folder}/{_PREFIX}{time.strftime('%Y%m%d-%H%M%S')}-{time.time_ns() % 10**9:09}.log"
        log = os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND, MODE), "wb")
        fcntl.flock(log, fcntl.LOCK_SH)
    except OSError as err:
        raise StartupError(f"--detach: the server's log cannot be written: {err}", cause="folder-not-writable") from err
    return Path(path), log


def _remove_old(folder: str) -> None:
    for path in sorted(Path(folder).glob(f"{_PREFIX}*.log"))[: 1 - _MOST_LOGS]:
        with suppress(OSError), path.open("rb") as log:  # the log is in use, or was removed
            fcntl.flock(log, fcntl.LOCK_EX | fcntl.LOCK_NB)
            path.unlink()


def _wait(pid: int, reporter: Reporter) -> str | None:
    """Waits for the server. Returns model, process and address as text, or None if the start has failed."""
    begin_s = time.monotonic()

    def show(polled: Readiness, _: float) -> None:
        phase = (polled.phase or "starting").replace("_", " ")
        reporter.update(f"{time.monotonic() - begin_s:6.1f} s  {phase}{polled.describe_rest()}", phase)

    while (record := next((each for each in read_run_records() if pid in (each.pid, each.front_pid)), None)) is None:
        if not is_alive(pid):
            return None
        show(Readiness("absent"), 0)
        time.sleep(_POLL_S)
    server = f"{record.model or 'The server'} (process {pid})"
    if (address := address_of(record)) is None:
        return f"{server} runs but does not listen, so its readiness is not known"
    options = WaitOptions(address=address, path="/health", timeout_s=_CLOSED_S, interval_s=_POLL_S, pid=pid)
    while (result := wait_for_server(options, show)).ending == "timed out" and not result.last.is_closed:
        pass
    last = result.last
    if last.state == "ready":
        return f"{server} on {address} is ready"
    is_unknown = last.status is None and is_alive(pid)  # `/health` has other answers, or needs a certificate
    return f"{server} on {address} runs, but its readiness is not known: {last.reason}" if is_unknown else None


def _end(pid: int) -> None:
    """Stops the start as `vllm-cli stop` does. A second Ctrl-C kills its processes."""
    with suppress(ProcessLookupError):
        os.kill(pid, signal.SIGTERM)
        end_s = time.monotonic() + _STOP_S
        try:
            while is_alive(pid) and time.monotonic() < end_s:
                time.sleep(_POLL_S)
        except KeyboardInterrupt:
            pass
        if is_alive(pid):
            os.killpg(pid, signal.SIGKILL)
