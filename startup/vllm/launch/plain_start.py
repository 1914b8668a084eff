"""Decides whether vLLM starts without preloading (a plain start). Restarts the launcher for a plain start."""

import logging
import os
import signal
import socket
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from contextlib import closing, suppress
from multiprocessing import resource_tracker
from typing import Final, NamedTuple, NoReturn

from base.exit_codes import INTERRUPTED
from base.machine.processes import is_alive
from envs import foreign
from envs.registry import env
from startup import start_origin
from startup.errors import log_with_code
from startup.port.service_manager import ServiceManager
from startup.processes import group_signals, interpreter
from startup.settings.serve_words import OMNI
from startup.vllm.fork.preload_profile import StartKind, forget_failure, plain_state
from startup.vllm.launch.hooks import find_obstacle
from startup.vllm.vllm_main import run_serve, without_click
from startup.vllm_words.command_line import CommandLine
from startup.vllm_words.installed import OLDEST, InstalledVllm, uses_rust_frontend

logger = logging.getLogger(__name__)

PLAIN_START: Final = "plain-start"
"""The code in log lines about plain starts that the user has not requested."""
_RANK_LAUNCHERS: Final = ("TORCHELASTIC_RUN_ID", "OMPI_COMM_WORLD_RANK")
"""Variables that torchrun and mpirun set. These launchers start one process for each rank."""
_NUMA: Final = ("--numa-bind",)
"""With these flags, vLLM binds processes to NUMA nodes by replacing the program that `spawn` runs."""
SET_BY_START: Final = "on"
"""The value of VCLI_PLAIN_VLLM with which a start that failed starts again. Users write 1."""
END_S: Final = 10.0
"""Seconds in which the processes of a failed start must end and, on a GPU, free its memory."""
_POLL_S: Final = 0.005
_LISTEN_POLL_S: Final = 0.1
_CONNECT_S: Final = 5.0
_ANY: Final = "0.0.0.0"
_LOOPBACK: Final = {_ANY: "127.0.0.1", "::": "::1"}
_NO_FAULTS: Final = (0, None, INTERRUPTED, 128 + signal.SIGTERM)
"""Exit codes of a server that was stopped."""


class PlainReason(NamedTuple):
    """Why vLLM starts without preloading."""

    text: str
    is_requested: bool = False
    """Whether the user or another launcher has requested the plain start, so that no warning is needed."""


def plain_start_reason(vllm: InstalledVllm, line: CommandLine) -> PlainReason | None:
    """Why vLLM must start without preloading. None if preloading is possible."""
    if (request := _request_of(vllm, line)) is not None:
        return PlainReason(request, is_requested=True)
    if not vllm.is_new_enough:
        return PlainReason(f"it is older than {'.'.join(map(str, OLDEST))}")
    if line.has(*_NUMA):
        return PlainReason("--numa-bind needs new programs for its processes")
    if uses_rust_frontend(vllm) and not line.has("--headless", "--grpc"):
        return PlainReason("its Rust frontend (VLLM_USE_RUST_FRONTEND) opens the port itself")
    if (state := plain_state(kind_of(vllm, line))) is not None:
        return PlainReason(str(state))
    if interpreter.is_free_threaded():
        return PlainReason(f"{interpreter.name()} is not supported")
    if (obstacle := find_obstacle()) is not None:
        return PlainReason(obstacle)
    return None


def _request_of(vllm: InstalledVllm, line: CommandLine) -> str | None:
    """How the user or another launcher has requested a plain start. None if nobody has."""
    if env.VCLI_PLAIN_VLLM.get():
        state = plain_state(kind_of(vllm, line))  # then this program may have set the variable
        is_again = env.VCLI_PLAIN_VLLM.raw == SET_BY_START
        how = f"is {SET_BY_START}, as after a failure of preloading" if is_again else "is set"
        return str(state or f"{env.VCLI_PLAIN_VLLM.name} {how}")
    if line.is_for_help:
        return "only help is requested"
    if OMNI in line.words:
        return "vllm-omni runs this command"
    if (launcher := next((name for name in _RANK_LAUNCHERS if foreign.is_set(name)), None)) is not None:
        return f"a launcher starts one process per rank ({launcher} is set)"
    return None


def kind_of(vllm: InstalledVllm, line: CommandLine) -> StartKind:
    """The kind of the start with this command line."""
    return StartKind.of(vllm, line.flags_of_modules, line.model_folder)


def log_reason(vllm: InstalledVllm, reason: PlainReason) -> None:
    """Logs why vLLM starts without preloading, as a warning unless the plain start was requested."""
    text = f"plain start: vLLM {vllm.version} starts without preloading: {reason.text}"
    if reason.is_requested:
        logger.info("%s", text)
    else:
        log_with_code(logger.warning, text, PLAIN_START)


def report_plain_start(log_format: str, line: CommandLine) -> None:
    """Reports readiness to the service manager, as vLLM does not. Warns if vLLM cannot use `log_format`."""
    if log_format != "text":
        reason = "vLLM starts without preloading"
        logger.warning("--log-format %s applies only to vllm-cli's own lines: %s", log_format, reason)
    if env.NOTIFY_SOCKET.get() is None:
        return
    manager = ServiceManager.from_environment()
    if line.uds is None and not (line.listens and line.port):
        with closing(manager):
            manager.notify_ready("vLLM was started, but its readiness is not known")
        return
    # Only messages of the main process count, so a process of its own cannot send it.
    group_signals.start_thread("notify-ready", lambda: _notify_when_listening(manager, line))


def _notify_when_listening(manager: ServiceManager, line: CommandLine) -> None:
    """Reports readiness once vLLM listens. It binds its port early, but listens only when it can answer."""
    with closing(manager):
        while not _listens(line):
            time.sleep(_LISTEN_POLL_S)
        manager.notify_ready("vLLM accepts connections")


def _listens(line: CommandLine) -> bool:
    host = line.host or _ANY
    is_v6 = ":" in host
    family = socket.AF_INET6 if is_v6 else socket.AF_INET
    address: str | tuple[str, int | None] = (_LOOPBACK.get(host, host), line.port)
    if line.uds is not None:
        family, address = socket.AF_UNIX, line.uds
    with socket.socket(family) as connection, suppress(OSError):
        connection.settimeout(_CONNECT_S)
        connection.connect(address)
        return line.uds is not None or connection.getsockname() != connection.getpeername()
    return False


def run_plainly(kind: StartKind, line: CommandLine) -> int:
    """Runs vLLM without preloading. If vLLM fails, preloading was not at fault, and is used next time."""
    try:
        code = without_click(lambda: run_serve(line))
    except (SystemExit, Exception) as err:
        if not isinstance(err, SystemExit) or err.code not in _NO_FAULTS:
            forget_failure(kind)
        raise
    if code not in _NO_FAULTS:
        forget_failure(kind)
    return code


def end_children(pids: Iterable[int]) -> None:
    """Kills the processes `pids`, and waits until they and all children of this process have ended.

    The processes need not be children of this process. This function closes the pipe of multiprocessing's
    resource tracker, so that the tracker ends.
    """
    with suppress(OSError):
        os.close(resource_tracker.getfd() or -1)
    orphans = {pid for pid in pids if pid != os.getpid() and is_alive(pid)}
    for pid in orphans:
        with suppress(OSError):
            if os.getpgid(pid) == os.getpgrp():  # not another process that has got the same pid
                os.kill(pid, signal.SIGKILL)
    end_s = time.monotonic() + END_S
    while (_has_children() or any(map(is_alive, orphans))) and time.monotonic() < end_s:
        time.sleep(_POLL_S)


def _has_children() -> bool:
    """Reaps children of this process that have ended. Returns whether other children still run."""
    with suppress(ChildProcessError):
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass
        return True
    return False


def exec_again(variable: str, value: str, environment: Mapping[str, str], words: Sequence[str] = ()) -> NoReturn:
    """Executes this process's command again with `words` at the end and a changed environment variable.

    The command's words come from `sys.orig_argv`, because /proc/self/cmdline may be masked. In a warm start,
    the process that the user has started executes the command instead of this fork.
    """
    if start_origin.start_again is not None:
        start_origin.start_again(variable, value, *words)
    sys.stdout.flush()
    sys.stderr.flush()
    with group_signals.blocked():  # Python's handlers would only record a signal, and `exec` would lose it
        for number in group_signals.GROUP_SIGNALS:
            if callable(signal.getsignal(number)):
                group_signals.set_handler(number, signal.SIG_DFL)
    os.execve(sys.executable, [*sys.orig_argv, *words], {**environment, variable: value})
