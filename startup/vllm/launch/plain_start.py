"""Decides whether vLLM starts without preloading (a plain start), and runs such a start."""

import gc
import logging
import signal
import socket
import time
from contextlib import closing, suppress
from pathlib import Path
from typing import Final, NamedTuple

from base.exit_codes import INTERRUPTED
from base.lifecycle import StartInfo
from envs import foreign
from envs.registry import env
from startup.compiled_models.compile_cache import forbid_compiling
from startup.errors import log_with_code
from startup.port.listener import describe_port
from startup.port.service_manager import ServiceManager
from startup.processes import group_signals, interpreter
from startup.session.preflight.all_checks import PreflightOptions
from startup.settings.serve_arguments import OMNI
from startup.storage.run_record import RunRecord, run_recorded
from startup.vllm.launch.hooks import find_obstacle
from startup.vllm.launch.model_files import with_folders
from startup.vllm.launch.plain_state import forget_failure, plain_state
from startup.vllm.serving.start_metrics import export_start
from startup.vllm.start_kind import StartKind
from startup.vllm.vllm_main import run_serve, without_click
from startup.vllm_arguments.installed import OLDEST, InstalledVllm, uses_rust_frontend
from startup.vllm_arguments.options import VllmOptions
from startup.vllm_arguments.preflight.all_checks import run_preflight
from startup.vllm_arguments.vllm_line import VllmLine
from startup.vllm_arguments.vllm_record import RecordFile

logger = logging.getLogger(__name__)

PLAIN_START: Final = "plain-start"
"""The code in log lines about plain starts that the user has not requested."""
_RANK_LAUNCHERS: Final = ("TORCHELASTIC_RUN_ID", "OMPI_COMM_WORLD_RANK")
"""Variables that torchrun and mpirun set. These launchers start one process for each rank."""
_NUMA: Final = ("--numa-bind",)
"""With these flags, vLLM binds processes to NUMA nodes by replacing the program that `spawn` runs."""
SET_BY_START: Final = "on"
"""The value of VCLI_PLAIN_VLLM with which a start that failed starts again. Users write 1."""
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


def plain_start_reason(vllm: InstalledVllm, line: VllmLine) -> PlainReason | None:
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


def _request_of(vllm: InstalledVllm, line: VllmLine) -> str | None:
    """How the user or another launcher has requested a plain start. None if nobody has."""
    if env.VCLI_PLAIN_VLLM.get():
        state = plain_state(kind_of(vllm, line))  # then this program may have set the variable
        is_again = env.VCLI_PLAIN_VLLM.raw == SET_BY_START
        how = f"is {SET_BY_START}, as after a failure of preloading" if is_again else "is set"
        return str(state or f"{env.VCLI_PLAIN_VLLM.name} {how}")
    if line.is_for_help:
        return "only help is requested"
    if OMNI in line.arguments:
        return "vllm-omni runs this command"
    launchers = [name for name in _RANK_LAUNCHERS if foreign.is_set(name)]
    if launchers:
        return f"a launcher starts one process per rank ({launchers[0]} is set)"
    return None


def kind_of(vllm: InstalledVllm, line: VllmLine) -> StartKind:
    """The kind of the start with this command line."""
    return StartKind.of(vllm, line.flags_of_modules, line.model_folder)


def start_plainly(vllm: InstalledVllm, line: VllmLine, options: VllmOptions, reason: PlainReason) -> int:
    """Runs vLLM without preloading and hooks."""
    _log_reason(vllm, reason)
    gc.enable()
    if vllm.is_new_enough and options.preflight != "off" and not env.VCLI_PLAIN_VLLM.get():
        report = run_preflight(vllm, line, PreflightOptions())
        report.apply(options.preflight)
        if report.errors:
            RecordFile(vllm).forget()
    line = with_folders(line)
    _report_plain_start(options.log_format, line)
    if options.compile_cache is not None and options.compile_cache.is_required:
        forbid_compiling()
    if options.compile_cache is not None and options.compile_cache.location is not None:
        logger.warning("--compile-cache: compiled models are not shared, because vLLM starts without preloading")
    info = StartInfo("plain", reason.text)
    with run_recorded(RunRecord(engine="vllm", model=line.served_name, address=address_of(line))) as note_start:
        note_start(info._asdict())
        export_start(info, {})
        return _run_plainly(kind_of(vllm, line), line)


def address_of(line: VllmLine) -> str | None:
    """The address where vLLM will listen. None if the command line does not determine it."""
    if line.has("--headless") or not line.port:
        return None
    if line.uds is not None:
        return f"unix:{Path(line.uds).absolute()}"
    return describe_port(line.host or "0.0.0.0", line.port, is_tls=line.has("--ssl-certfile"))


def _log_reason(vllm: InstalledVllm, reason: PlainReason) -> None:
    """Logs why vLLM starts without preloading, as a warning unless the plain start was requested."""
    text = f"plain start: vLLM {vllm.version} starts without preloading: {reason.text}"
    if reason.is_requested:
        logger.info("%s", text)
    else:
        log_with_code(logger.warning, text, PLAIN_START)


def _report_plain_start(log_format: str, line: VllmLine) -> None:
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


def _notify_when_listening(manager: ServiceManager, line: VllmLine) -> None:
    """Reports readiness once vLLM listens. It binds its port early, but listens only when it can answer."""
    with closing(manager):
        while not _listens(line):
            time.sleep(_LISTEN_POLL_S)
        manager.notify_ready("vLLM accepts connections")


def _listens(line: VllmLine) -> bool:
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


def _run_plainly(kind: StartKind, line: VllmLine) -> int:
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
