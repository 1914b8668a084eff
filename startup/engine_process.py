"""Starts the engine process with the chosen start method and ends it again."""

import logging
import os
import socket
import stat
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing import forkserver
from multiprocessing.context import BaseContext
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

from envs.registry import env
from server.config import EngineConfig, ModelFiles
from startup.imports import import_engine, import_serially
from startup.logs import configure_logging
from startup.model.model_class import modeling_module
from startup.openmp import limit_spinning
from startup.timeline.process_age import process_start_ns

logger = logging.getLogger(__name__)

PRELOAD_MODULE = "startup.preload"
_KILL_AFTER_S = 5.0
_STANDARD_FDS = (0, 1, 2)


class EngineProcess:
    """The engine process as the API process sees it; `connection` is this side's end of the socket pair."""

    def __init__(self, process: BaseProcess, connection: socket.socket) -> None:
        self._process = process
        self.connection = connection

    @property
    def pid(self) -> int | None:
        return self._process.pid

    @property
    def exitcode(self) -> int | None:
        return self._process.exitcode

    def close(self) -> None:
        """Waits for the process, whose socket has been closed, and kills it if it does not end by itself."""
        self.connection.close()
        self._process.join(_KILL_AFTER_S)
        if self._process.is_alive():
            logger.warning("the engine process %s did not end in %g s and is killed", self.pid, _KILL_AFTER_S)
            self._process.kill()
            self._process.join()


def prepare(context: BaseContext, files: ModelFiles | None = None) -> None:
    """Does what can be done beforehand: a forkserver begins to import, `fork` imports here.

    Args:
        context: of the start method.
        files: the model, where it is on disk already; a forkserver imports its class, too.
    """
    limit_spinning()
    method = context.get_start_method()
    if method == "forkserver":
        if files is not None and (module := modeling_module(files.path)):
            os.environ.setdefault(env.VCLI_PRELOAD_MODULE.name, module)
        context.set_forkserver_preload([PRELOAD_MODULE])
        forkserver.ensure_running()
    elif method == "fork":
        import_serially()


def blocks_on_imports(context: BaseContext) -> bool:
    """Whether `start_engine` waits until the engine's imports are done: a forkserver forks only then (CPython #157216).

    What this process still has to import should then come first, so that both import at once.
    """
    return context.get_start_method() == "forkserver"


def start_engine(
    context: BaseContext,
    files: ModelFiles,
    config: EngineConfig,
    *,
    logging_level: str,
) -> EngineProcess:
    """Starts the process; it loads the model at once and tells over the socket when it is done."""
    ours, theirs = socket.socketpair()
    is_fork = context.get_start_method() == "fork"
    process = context.Process(  # type: ignore[attr-defined]
        target=_main,
        name="vllm-cli-engine",
        args=(theirs, files, config, logging_level, is_fork),
        daemon=True,
    )
    with _without_main_module():
        process.start()
    theirs.close()
    return EngineProcess(process, ours)


@contextmanager
def _without_main_module() -> Iterator[None]:
    """Keeps multiprocessing from running this program's own script in the new process, which needs nothing of it."""
    main = vars(sys.modules["__main__"])
    hidden: dict[str, Any] = {name: main.pop(name) for name in ("__file__", "__spec__") if name in main}
    main["__spec__"] = None
    try:
        yield
    finally:
        main.update(hidden)


def _main(
    connection: socket.socket,
    files: ModelFiles,
    config: EngineConfig,
    logging_level: str,
    is_fork: bool,
) -> None:
    """Runs in the engine process, on its main thread."""
    if is_fork:
        _close_other_sockets(connection)
    configure_logging(logging_level, process="engine")
    from server.engine.phases import Phases
    from server.engine.process import run_engine

    phases = Phases()
    phases.spans.append(("start_process", process_start_ns(), time.monotonic_ns()))
    preload = sys.modules.get(PRELOAD_MODULE)
    if preload is not None:
        phases.spans += preload.SPANS
        left_out = preload.LEFT_OUT
    else:
        with phases.span("import_torch_and_transformers"):
            left_out = import_engine()
    run_engine(connection, files, config, phases, imports=left_out)


def _close_other_sockets(keep: socket.socket) -> None:
    """A forked process holds the server's socket, its clients' and the other end of its own: none is its to keep."""
    for entry in list(Path("/proc/self/fd").iterdir()):
        fd = int(entry.name)
        try:
            is_socket = stat.S_ISSOCK(os.fstat(fd).st_mode)
        except OSError:
            continue
        if is_socket and fd not in (keep.fileno(), *_STANDARD_FDS):
            os.close(fd)
