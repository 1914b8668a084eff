"""Runs vLLM's command line in this process, and decides whether without preloading (a plain start)."""

import importlib
import logging
import os
import sys
from collections.abc import Callable
from contextlib import closing
from importlib.metadata import entry_points
from typing import Final, NamedTuple

from envs import foreign
from envs.registry import env
from startup.hooks.of_vllm import MAIN
from startup.systemd.service_manager import ServiceManager
from startup.vllm.command_line import CommandLine
from startup.vllm.installed import OLDEST, InstalledVllm
from startup.vllm.launch.hook_check import check_installed, find_obstacle

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
    if (obstacle := find_obstacle(check_installed(vllm))) is not None:
        return PlainReason(obstacle)
    return None


def report_plain_start(log_format: str) -> None:
    """Warns that vLLM does not log JSON; reports readiness at once: a service manager would wait for it."""
    if log_format == "json":
        logger.warning("--log-format json applies only to vllm-cli's own lines: vLLM starts without preloading")
    with closing(ServiceManager.from_environment()) as manager:
        manager.notify_ready("vLLM was started; its readiness is not known")


def run_vllm(line: CommandLine) -> int:
    """Runs `vllm serve` with these words until it returns or raises SystemExit or an error of vLLM's."""
    sys.argv = [os.path.join(os.path.dirname(sys.executable), "vllm"), "serve", *line.words]  # noqa: PTH118, PTH120
    main = _find_main()
    try:
        main()
    except (EOFError, BrokenPipeError) as err:  # from a pipe of vLLM's; click would attribute it to the terminal
        sys.excepthook(type(err), err, err.__traceback__)
        raise SystemExit(1) from err
    return 0


def _find_main() -> Callable[[], object]:
    """The function that vLLM's script calls; a version without the known one may have another script."""
    try:
        main: Callable[[], object] = MAIN.get(importlib.import_module(MAIN.module))
        return main
    except (ModuleNotFoundError, AttributeError):
        script = next(iter(entry_points(group="console_scripts", name="vllm")), None)
        if script is None:
            raise
        other: Callable[[], object] = script.load()
        return other
