"""The standby process: starts and replaces template processes, and answers `standby status` and `stop`."""

import fcntl
import logging
import os
import selectors
import shutil
import signal
import socket
import time
from contextlib import AbstractContextManager, ExitStack, suppress
from dataclasses import dataclass
from typing import Final

from base.machine.processes import pss_bytes
from base.wording import format_bytes
from envs.registry import env
from startup.errors import StartupError
from startup.files.model.file_plan import plan_files
from startup.files.model.model_request import ModelRequest
from startup.files.prefetch.prefetch_process import PrefetchHandle, start_prefetch
from startup.processes.group_signals import GROUP_SIGNALS
from startup.standby import sockets
from startup.standby.sockets import peer_of
from startup.standby.status import STATUS, STOP, StandbyStatus
from startup.standby.template_process import TemplateProcess
from startup.storage.run_record import STANDBY, RunRecord, run_recorded

logger = logging.getLogger(__name__)

_TICK_S: Final = 1.0
_MEMORY_CHECK_S: Final = 10.0
_PAGES_CHECK_S: Final = 60.0
_MAX_REQUEST_BYTES: Final = 64


@dataclass(frozen=True, kw_only=True)
class StandbyOptions:
    """The settings of a standby."""

    kinds: tuple[str, ...]
    """The kinds of template processes (`startup.standby.sockets`)."""
    models: tuple[str, ...] = ()
    """Folders or hub ids of models: classes and tokenizers are loaded, weights are kept in the page cache."""
    idle_exit_s: float | None = None
    """The standby ends after this many seconds without a forked server. None: it never ends by itself."""
    max_memory_bytes: int | None = None
    """The limit for the PSS of standby and template processes together, in bytes. None sets no limit."""


def run_standby(options: StandbyOptions) -> int:
    """Runs a standby until a signal, `standby stop` or the idle limit ends it. Returns the exit code.

    Raises:
        StartupError: another standby runs, or its sockets cannot be created.
    """
    with ExitStack() as stack:
        try:
            folder_fd = sockets.create_folder()
        except OSError as err:
            message = f"the standby's folder {sockets.socket_folder()} cannot be used: {err}"
            raise StartupError(message, cause="standby-unusable") from err
        is_owned = env.VCLI_STANDBY_FOLDER.get() is not None  # a router's own, which nobody else uses
        if is_owned:
            stack.callback(shutil.rmtree, sockets.socket_folder(), ignore_errors=True)
        stack.callback(os.close, folder_fd)
        lock_fd = _lock(folder_fd)
        stack.callback(os.close, lock_fd)
        stack.enter_context(run_recorded(RunRecord(engine=STANDBY, owner_pid=os.getppid() if is_owned else None)))
        return _Standby(options, folder_fd, stack).run()


class _Standby:
    def __init__(self, options: StandbyOptions, folder_fd: int, stack: ExitStack) -> None:
        self._options = options
        self._begin_s = self._used_s = time.monotonic()
        self._memory_checked_s = 0.0
        self._is_stopping = False
        self._selector = stack.enter_context(selectors.DefaultSelector())
        self._control = stack.enter_context(sockets.listen(folder_fd, sockets.CONTROL, socket.SOCK_SEQPACKET))
        stack.callback(_remove, folder_fd, sockets.CONTROL)
        self._pages = stack.enter_context(_ModelPages(options.models))
        self._templates = [TemplateProcess(kind, options.models) for kind in options.kinds]
        for template in self._templates:
            stack.callback(_remove, folder_fd, template.kind)
            stack.callback(template.close)

    def run(self) -> int:
        from startup.port.service_manager import ServiceManager

        self._selector.register(self._control, selectors.EVENT_READ)
        signals_fd = self._watch_signals()
        self._selector.register(signals_fd, selectors.EVENT_READ)
        kinds = ", ".join(template.kind for template in self._templates)
        logger.info("the standby keeps imports for: %s", kinds)
        manager = ServiceManager.from_environment()
        manager.notify_status(f"importing: {kinds}")
        is_ready = False
        while not self._is_stopping:
            self._tend()
            states = {template.state for template in self._templates}
            if not is_ready and "ready" in states and "importing" not in states:
                is_ready = True
                manager.notify_ready(f"ready: {kinds}")
            for key, _ in self._selector.select(_TICK_S):
                if isinstance(key.data, TemplateProcess):
                    if key.data.is_running:  # otherwise a signal of this round has ended it
                        self._follow(key.data)
                elif key.fileobj is self._control:
                    self._answer()
                else:
                    self._handle_signals(os.read(signals_fd, 256))
        manager.notify_stopping("stopping")
        manager.close()
        return 0

    def status(self) -> StandbyStatus:
        templates = tuple(template.status() for template in self._templates)
        return StandbyStatus(
            pid=os.getpid(),
            uptime_s=round(time.monotonic() - self._begin_s, 1),
            memory_bytes=pss_bytes(os.getpid()) + sum(t.memory_bytes for t in templates),
            models=self._options.models,
            templates=templates,
        )

    def _watch_signals(self) -> int:
        read_fd, write_fd = os.pipe()
        os.set_blocking(write_fd, False)
        signal.set_wakeup_fd(write_fd)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        for number in GROUP_SIGNALS:
            if signal.getsignal(number) != signal.SIG_IGN:
                signal.signal(number, lambda *_: None)
        return read_fd

    def _handle_signals(self, numbers: bytes) -> None:
        """On SIGCHLD, checks whether a template process has ended. Any other signal stops the standby."""
        self._is_stopping = self._is_stopping or any(number != signal.SIGCHLD for number in numbers)
        for template in self._templates:
            if template.has_exited:
                self._follow(template)

    def _tend(self) -> None:
        """Starts missing template processes and page cache reads. Enforces limits of memory and idle time."""
        now = time.monotonic()
        for template in self._templates:
            if (channel := template.start_if_due()) is not None:
                self._selector.register(channel, selectors.EVENT_READ, template)
        self._pages.keep()
        idle_exit_s = self._options.idle_exit_s
        if idle_exit_s is not None and now - self._used_s >= idle_exit_s:
            logger.info("no server was started for %g s: the standby ends", idle_exit_s)
            self._is_stopping = True
        if self._options.max_memory_bytes is not None and now - self._memory_checked_s >= _MEMORY_CHECK_S:
            self._memory_checked_s = now
            self._limit_memory(self._options.max_memory_bytes)

    def _limit_memory(self, limit_bytes: int) -> None:
        """If the memory is over the limit, ends the template process that was unused for longest."""
        memory_bytes = self.status().memory_bytes
        running = [template for template in self._templates if template.is_running]
        if memory_bytes > limit_bytes and running:
            oldest = min(running, key=lambda template: template.used_s)
            text = "the standby uses %s of %s (--max-memory): the imports for %s are dropped"
            logger.warning(text, format_bytes(memory_bytes), format_bytes(limit_bytes), oldest.kind)
            self._selector.unregister(oldest.channel)
            oldest.give_up("over the memory limit")

    def _follow(self, template: TemplateProcess) -> None:
        channel = template.channel
        num_starts = template.num_starts
        template.read_messages()
        if template.num_starts > num_starts:
            self._used_s = time.monotonic()
        if not template.is_running:
            self._selector.unregister(channel)

    def _answer(self) -> None:
        with suppress(OSError):
            connection, _ = self._control.accept()
            with connection:
                connection.settimeout(_TICK_S)
                if peer_of(connection)[1] != os.geteuid():
                    return
                request = connection.recv(_MAX_REQUEST_BYTES)
                if request not in (STATUS, STOP):
                    return
                connection.send(self.status().to_json().encode())
                self._is_stopping = self._is_stopping or request == STOP


class _ModelPages(AbstractContextManager["_ModelPages"]):
    """Keeps the models' weights in the page cache. Reads weights again if the kernel has evicted them.

    The limits are those of every prefetch (`startup.files.prefetch.survey`). No page is locked in memory.
    """

    def __init__(self, models: tuple[str, ...]) -> None:
        self._models = models
        self._next_s = 0.0
        self._running: PrefetchHandle | None = None

    def __exit__(self, *_: object) -> None:
        if self._running is not None:
            self._running.close()

    def keep(self) -> None:
        """Called regularly. Once a minute, a helper process reads weights that are not in the page cache."""
        if self._running is not None and (report := self._running.result()) is not None:
            logger.debug("%s", report)
            self._running = None
            if report.unknown_bytes:  # otherwise they would be read each time
                self._models = ()
        if self._models and self._running is None and time.monotonic() >= self._next_s:
            self._next_s = time.monotonic() + _PAGES_CHECK_S
            plans = [plan_files(ModelRequest(model=model)) for model in self._models]
            paths = [path for plan in plans if plan.files is not None for path in plan.prefetched]
            self._running = start_prefetch(paths)


def _lock(folder_fd: int) -> int:
    """Takes the lock of the standby. The kernel releases the lock even if the standby is killed."""
    path = sockets.socket_path(folder_fd, sockets.CONTROL).removesuffix(".sock") + ".lock"
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as err:
        os.close(fd)
        raise StartupError(
            "a standby runs already: `vllm-cli standby status` shows it, `standby stop` ends it",
            cause="standby-unusable",
        ) from err
    return fd


def _remove(folder_fd: int, name: str) -> None:
    with suppress(FileNotFoundError):
        os.unlink(sockets.socket_path(folder_fd, name))  # noqa: PTH108
