"""The front of `vllm-cli serve --idle-stop`: owns the port, and starts the server on request.

The front is a light process: it imports no torch and no HTTP server. The server is a process that it
starts, `vllm-cli serve` with the same words; it accepts nothing itself (`startup.probes.front_link`). It
asks the front to pass no more requests on when it is idle (`startup.probes.idle_stop`), and ends.
"""

import logging
import os
import selectors
import signal
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from envs.registry import env
from envs.variable import spell_duration
from server.exit_codes import OK
from server.machine.processes import pss_bytes
from startup.errors import StartupError
from startup.logs.options import LogOptions
from startup.logs.setup import configure_logging
from startup.on_request.child_process import ServerCommand, ServerProcess, describe_end
from startup.on_request.front_answers import FrontAnswers
from startup.on_request.front_keys import FrontKeys
from startup.on_request.front_loop import SHUTTING_DOWN, FrontLoop, Holding
from startup.on_request.model_state import ModelState, State
from startup.on_request.own_standby import OwnStandby
from startup.probes import listener
from startup.probes.front_link import FrontOffer
from startup.processes.quick_end import end_like
from startup.run_record import RunRecord, recorded
from startup.session import ListenAddress

if TYPE_CHECKING:
    from startup.systemd.service_manager import ServiceManager

logger = logging.getLogger(__name__)

_ENDING: Final = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT)
"""The front ends with its server; without one, at once."""
_FORWARDED: Final = (*_ENDING, signal.SIGUSR1, signal.SIGUSR2, signal.SIGWINCH)
_STOPS: Final = (signal.SIGTSTP, signal.SIGTTIN, signal.SIGTTOU)
"""Job control: the server's process group is stopped, then this process."""
_HANDLED: Final = (*_FORWARDED, *_STOPS, signal.SIGCONT)
_STOPPED_STATUS: Final = "stopped, starts on request"


@dataclass(frozen=True, kw_only=True)
class FrontOptions:
    """The settings of a front."""

    address: ListenAddress
    model_name: str
    """As clients name it."""
    command: ServerCommand
    idle_stop_s: float
    wait_s: float | None
    """How long a request waits for the server's start; None for no limit."""
    standby_kind: str | None
    """Of its own standby; None for none."""
    find_model: Callable[[], str | None]
    """The model's folder once it is on disk, whose class and tokenizer that standby keeps."""
    is_private: bool
    """Whether everything but probes needs a key."""
    keys: FrontKeys
    logs: LogOptions


def run_front(options: FrontOptions) -> int:
    """Runs until a signal; returns the exit code of the last server.

    Raises:
        PortInUseError: another process listens there.
        StartupError: the address cannot be used.
    """
    configure_logging(options.logs, role="front")
    passed = _take_socket()
    host, port, uds, _ = options.address
    with (
        passed or listener.listen(host=host, port=port, uds=uds) as listening,
        recorded(RunRecord(engine="auto", model=options.model_name, address=listener.describe(listening))),
        closing(OwnStandby(options.standby_kind, options.find_model)) as standby,
    ):
        return end_like(_Front(options, listening, standby).run())


def _take_socket() -> socket.socket | None:
    """The listening socket that a service manager passed to this process, if any."""
    if env.LISTEN_PID.get() is None:
        return None
    from startup.systemd.service_manager import take_socket

    return take_socket()


def _connect_manager() -> "ServiceManager":
    from startup.systemd.service_manager import ServiceManager

    return ServiceManager.from_environment()


class _Front:
    """One run, on the main thread of a process with no other one."""

    def __init__(self, options: FrontOptions, listening: socket.socket, standby: OwnStandby) -> None:
        self._options = options
        self._listener = listening
        self._standby = standby
        self._manager = _connect_manager()
        self._address = listener.describe(listening)
        self._model = ModelState(time.monotonic())
        self._answers = FrontAnswers(
            self._model, options.model_name, self._memory, options.keys, is_private=options.is_private
        )
        self._selector = selectors.DefaultSelector()
        self._server: ServerProcess
        self._has_ended = False
        """Whether the process of the server has ended, but was not reaped."""
        self._signals: list[int] = []
        self._exit_code: int | None = None
        self._last_state: State = "starting"
        self._wake_s = 0.0

    def run(self) -> int:
        """Returns the exit code; -N to end by signal N.

        Raises:
            StartupError: the first server cannot be started.
        """
        with self._handling_signals():
            self._start_first()
            holding = Holding(self._wake, self._options.wait_s)
            self._loop = FrontLoop(self._listener, self._server.link, self._selector, self._answers, holding)
            while self._exit_code is None:
                self._loop.turn()
                self._process_signals()
                if self._has_ended:
                    self._follow_end()
                self._report_state()
                if self._model.has_been_ready and self._model.state in ("ready", "stopped"):
                    self._standby.tend()
            self._loop.close()
            self._manager.close()
        return self._exit_code

    def _start_first(self) -> None:
        try:
            self._start_server()
        except OSError as err:
            raise StartupError(f"the server cannot be started: {err}") from err

    def _start_server(self) -> None:
        model = self._model
        command = ServerCommand(self._options.command.words, self._options.command.variables | self._standby.variables)
        offer = FrontOffer(0, -1, -1, self._options.idle_stop_s, model.num_idle_stops, model.num_wakes)
        self._server = ServerProcess.start(command, self._listener, offer)
        self._selector.register(self._server.pidfd, selectors.EVENT_READ, _Watch(self._note_end))

    def _wake(self) -> None:
        """A request needs the server: starts one unless there is one, or it is too early after a failure."""
        now = time.monotonic()
        if self._loop.is_ending or not self._model.may_start(now):
            return
        logger.info("a request starts the model")
        self._wake_s = now
        self._model.wake(now)
        self._answers.begin_start()
        try:
            self._start_server()
        except OSError as err:
            reason = f"The server cannot be started: {err}"
            logger.warning("%s", reason)
            self._model.end(reason, now)
            self._loop.reject_held(reason)
        else:
            self._loop.follow(self._server.link)

    def _note_end(self) -> None:
        self._has_ended = True
        self._selector.unregister(self._server.pidfd)

    def _follow_end(self) -> None:
        """The server's process has ended: takes its last messages into account."""
        self._has_ended = False
        self._loop.unfollow()
        code = self._server.poll()
        assert code is not None
        self._server.close()
        is_idle, is_first = self._model.state == "stopping", not self._model.has_been_ready
        was_starting = self._model.state == "starting"
        reason = (self._answers.failure if was_starting else "") or describe_end(code)
        self._model.end(reason, time.monotonic())
        if is_idle and not self._loop.is_ending:
            self._loop.release()
            return
        self._loop.reject_held(SHUTTING_DOWN if self._loop.is_ending else reason)
        if self._loop.is_ending or is_first:
            self._exit_code = code
        else:
            logger.warning("%s; the next request starts it again", reason)

    def _process_signals(self) -> None:
        numbers, self._signals = self._signals, []
        for index, number in enumerate(numbers):
            if number in _STOPS:
                if signal.SIGCONT not in numbers[index:]:  # it cancels a stop
                    self._stop(number)
            elif self._model.has_server:
                send = self._server.signal_group if number == signal.SIGCONT else self._server.signal
                send(number)
            if number in _ENDING:
                self._begin_end(number)

    def _begin_end(self, number: int) -> None:
        self._loop.is_ending = True
        if not self._model.has_server:
            self._exit_code = OK if number in (signal.SIGTERM, signal.SIGINT) else -number
        elif self._model.state != "ready":
            self._loop.reject_held(SHUTTING_DOWN)
        self._manager.notify_stopping("stopping")

    def _stop(self, number: int) -> None:
        """Stops the server and this process; returns once it is continued."""
        if self._model.has_server:
            self._server.signal_group(number)
        handler = signal.signal(number, signal.SIG_DFL)
        os.kill(os.getpid(), number)  # returns at once without job control
        signal.signal(number, handler)
        if self._model.has_server:
            self._server.signal_group(signal.SIGCONT)

    @contextmanager
    def _handling_signals(self) -> Iterator[None]:
        """Records signals, which the loop notices at once."""
        read_fd, write_fd = os.pipe()
        for fd in (read_fd, write_fd):
            os.set_blocking(fd, False)
        self._selector.register(read_fd, selectors.EVENT_READ, _Watch(lambda: self._read_signals(read_fd)))
        for number in _HANDLED:
            if signal.getsignal(number) != signal.SIG_IGN:
                signal.signal(number, lambda *_: None)
        signal.set_wakeup_fd(write_fd, warn_on_full_buffer=False)
        try:
            yield
        finally:
            signal.set_wakeup_fd(-1)
            for fd in (read_fd, write_fd):
                os.close(fd)

    def _read_signals(self, fd: int) -> None:
        with suppress(BlockingIOError):
            self._signals += os.read(fd, 256)

    def _report_state(self) -> None:
        """Logs a change, and notifies the service manager; called after each turn."""
        state, before = self._model.state, self._last_state
        self._last_state = state
        if state == "starting" and not self._model.has_been_ready:
            self._manager.notify_status(self._answers.activity)
        if state == before:
            return
        if state == "ready" and before == "starting":
            self._report_ready()
        elif state == "starting":
            self._manager.notify_status("starting: a request came")
        elif state == "stopped":
            self._manager.notify_status(_STOPPED_STATUS)
        elif state == "failed":
            self._manager.notify_status(f"failed: {self._model.reason}")

    def _report_ready(self) -> None:
        if self._wake_s:
            logger.info("the model is ready %.2f s after the request", time.monotonic() - self._wake_s)
            self._manager.notify_status(f"ready: {self._address}")
        else:
            self._manager.notify_ready(f"ready: {self._address}")
            logger.info("the model is stopped after %s without a request", spell_duration(self._options.idle_stop_s))

    def _memory(self) -> dict[str, int]:
        return {"front_bytes": pss_bytes(os.getpid()), "standby_bytes": self._standby.memory_bytes()}


class _Watch:
    """A descriptor in the loop's selector that is not a connection."""

    def __init__(self, on_ready: Callable[[], None]) -> None:
        self.advance = on_ready
