"""Decides whether vLLM starts without preloading (a plain start), and starts it again that way."""

import logging
import os
import signal
import sys
import traceback
from contextlib import closing
from typing import Final, NamedTuple, NoReturn

from envs import foreign
from envs.registry import env
from startup.processes import interpreter
from startup.systemd.service_manager import ServiceManager
from startup.timeline import start_origin
from startup.vllm.command_line import CommandLine
from startup.vllm.installed import OLDEST, InstalledVllm
from startup.vllm.launch.hooks import check_installed, find_obstacle

logger = logging.getLogger(__name__)

_RANK_LAUNCHERS: Final = ("TORCHELASTIC_RUN_ID", "OMPI_COMM_WORLD_RANK")
"""Variables that torchrun and mpirun set; they start one process per rank themselves."""
_NUMA: Final = ("--numa-bind",)
"""vLLM binds processes to NUMA nodes by replacing the program that `spawn` runs."""


class PlainReason(NamedTuple):
    """Why vLLM starts without preloading."""

    text: str
    is_requested: bool = False
    """Whether the user or another launcher has requested it, so that no warning is needed."""


def plain_start_reason(vllm: InstalledVllm, line: CommandLine) -> PlainReason | None:
    """Why vLLM must start without preloading; None if it can preload."""
    if env.VCLI_PLAIN_VLLM.get():
        return PlainReason(f"{env.VCLI_PLAIN_VLLM.name} is set", is_requested=True)
    if line.is_for_help:
        return PlainReason("only help is requested", is_requested=True)
    if not vllm.is_new_enough:
        return PlainReason(f"it is older than {'.'.join(map(str, OLDEST))}")
    if (launcher := next((name for name in _RANK_LAUNCHERS if foreign.is_set(name)), None)) is not None:
        return PlainReason(f"a launcher starts one process per rank ({launcher} is set)", is_requested=True)
    if line.has(*_NUMA):
        return PlainReason("--numa-bind needs new programs for its processes")
    if interpreter.is_free_threaded():
        return PlainReason(f"{interpreter.name()} is not supported")
    if (obstacle := find_obstacle(check_installed(vllm))) is not None:
        return PlainReason(obstacle)
    return None


def report_plain_start(log_format: str) -> None:
    """Warns that vLLM does not log JSON; reports readiness at once: a service manager would wait for it."""
    if log_format == "json":
        logger.warning("--log-format json applies only to vllm-cli's own lines: vLLM starts without preloading")
    with closing(ServiceManager.from_environment()) as manager:
        manager.notify_ready("vLLM was started; its readiness is not known")


def exec_again(variable: str, value: str) -> NoReturn:
    """Executes the same command in this process with a variable set, which discards all of its state.

    The words are `sys.orig_argv`: those in /proc/self/cmdline may have been masked. A server that was forked
    from a standby has its front process execute the command.
    """
    if start_origin.start_again is not None:
        start_origin.start_again(variable, value)
    if callable(signal.getsignal(signal.SIGINT)):
        signal.signal(signal.SIGINT, signal.SIG_DFL)  # Python's handler would only record it, and `exec` forget that
    os.environ[variable] = value
    sys.stdout.flush()
    sys.stderr.flush()
    os.execv(sys.executable, sys.orig_argv)


def is_raised_in(err: BaseException, folder: str) -> bool:
    """Whether the error or one of its causes was raised by code in the folder."""
    chain: BaseException | None = err
    while chain is not None:
        frames = traceback.extract_tb(chain.__traceback__)
        if frames and folder in frames[-1].filename:
            return True
        chain = chain.__cause__ or chain.__context__
    return False
