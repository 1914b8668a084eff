"""Runs the router of `serve` with several models, `--idle-stop` or `--restart`.

The router owns the port and the models' processes. It is a light process that imports no torch. Its event
loop runs on the main thread, because the kernel ends a child together with the *thread* that has forked it.
"""

import asyncio
import gc
import logging
import os
import signal
import socket
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import AsyncExitStack, ExitStack, closing, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final

import uvloop

from base.errors import ServerError
from base.exit_codes import ENGINE_DIED, OK, START_FAILED, USAGE
from base.program_version import program_version
from base.security.api_keys import ApiKeys
from base.security.credentials import Credentials, FileWatch
from base.server_settings import SAME_SIGNAL_S, SWITCH_INTERVAL_S
from envs.registry import env
from router.child.child import Child, ChildPlace
from router.child.log import LogRelay
from router.child.place import ChildPlaces, guarded
from router.http.app import AppOptions, RouterHttp, create_http
from router.model_entry import ModelEntry, ModelsFileError
from router.model_memory import MemoryMeter
from router.model_pool import ModelPool, ModelRefused
from router.scheduling.terms import SchedulerLimits
from router.standbys import Standbys
from server.http.transport.server import HttpServer
from startup.errors import StartupError
from startup.logs.setup import configure_logging
from startup.port import listener
from startup.port.service_manager import ServiceManager, take_socket
from startup.processes.quick_end import end_like
from startup.settings.config import StartupConfig
from startup.storage.run_record import ROUTER, RunRecord, run_recorded
from startup.storage.temp_folder import ensure_temp_folder, own_folder

logger = logging.getLogger(__name__)

_KEEP_ALIVE_S: Final = 75.0
"""The router's default of VLLM_HTTP_TIMEOUT_KEEP_ALIVE. Load balancers close idle connections earlier."""
_TEND_S: Final = 1.0
_ENDING: Final = (signal.SIGTERM, signal.SIGINT, signal.SIGQUIT)
_IGNORED: Final = (signal.SIGUSR1, signal.SIGUSR2)
_STOPS: Final = (signal.SIGTSTP, signal.SIGTTIN, signal.SIGTTOU)


@dataclass(frozen=True, kw_only=True)
class RouterOptions:
    """The settings of a router."""

    config: StartupConfig
    """The values of the router's own flags. The file's API keys are added to those of the flags."""
    entries: Mapping[str, ModelEntry]
    """Name -> entry, in the order of the file or of the command line."""
    reload: Callable[[], Mapping[str, ModelEntry]] | None = None
    """Reads and checks the file again, on a thread. Raises ModelsFileError. None if there is no file."""
    path: Path | None = None
    """The file of models. The router watches it for changes. None if there is no file."""
    find_template_kinds: Callable[[], tuple[str, ...]]
    """Returns the kinds of standbys that the present models need. Empty if all models start cold."""
    find_model: Callable[[str], str | None]
    """Returns a model's folder on disk. The argument is the name of the model's entry."""
    check_again: Callable[[ModelEntry], ModelEntry]
    """Checks an entry whose files were replaced. Returns the entry as it is now. Called on a thread."""
    only: str | None = None
    """The name of the only model, which gets all requests. None if the router serves several models.

    The router has an only model after `serve MODEL --idle-stop` or `--restart`. If its first start fails, the
    router ends.
    """
    model_has_keys: bool = False
    """Whether the model's server checks the API keys itself, because its --config file contains them."""


def run_router(options: RouterOptions) -> int:
    """Runs the router until a signal ends it. Returns the exit code.

    Raises:
        PortInUseError: another process listens on the port.
        StartupError: the address, a file of keys or a file of TLS cannot be used.
    """
    config = options.config
    configure_logging(config.logs, role="router")
    ensure_temp_folder()
    sys.setswitchinterval(SWITCH_INTERVAL_S)
    network, tls = config.server.network, config.server.tls
    with ExitStack() as stack:
        folder = stack.enter_context(own_folder())
        places = ChildPlaces(folder, config.logs)
        if options.only is None:  # the server of an only model ends its processes itself
            stack.enter_context(guarded(str(folder)))
        listening = stack.enter_context(
            take_socket() or listener.listen(host=network.host, port=network.port, uds=network.uds)
        )
        address = listener.describe(listening, is_tls=tls.ssl_certfile is not None)
        record = RunRecord(engine=ROUTER, model=", ".join(options.entries), address=address)
        stack.enter_context(run_recorded(record))
        try:
            credentials = Credentials(network, tls, ApiKeys.from_config(network))
        except ServerError as err:
            raise StartupError(str(err), cause="keys-or-certificates") from err
        standbys = stack.enter_context(closing(Standbys(options.find_model, folder)))
        gc.freeze()
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            code = runner.run(_Router(options, listening, credentials, places, standbys).run())
    return end_like(code)


class _Router:
    """One run of the router, on the event loop."""

    def __init__(
        self,
        options: RouterOptions,
        listening: socket.socket,
        credentials: Credentials,
        places: ChildPlaces,
        standbys: Standbys,
    ) -> None:
        limits = SchedulerLimits(**asdict(options.config.several))
        self._options = options
        self._listener = listening
        self._address = listener.describe(listening, is_tls=credentials.tls_context is not None)
        self._credentials = credentials
        self._places = places
        self._standbys = standbys
        self._relay = LogRelay(options.config.log_format, has_names=options.only is None)
        self._pool = ModelPool(limits, MemoryMeter(options.find_model), self, only=options.only)
        self._http: RouterHttp
        self._manager = ServiceManager.from_environment()
        self._stopped = asyncio.Event()
        self._killed = asyncio.Event()
        self._stopped_s = 0.0
        self._exit_code = OK
        self._is_ready = False
        """Whether each model with `preload` has become ready or has failed."""
        self._reloading: asyncio.Task[None] | None = None
        self._preloading: asyncio.Future[list[None]] | None = None
        """The running starts of models with `preload` after the last change of the file."""
        self._wants_reload = False
        self._status = ""

    async def run(self) -> int:
        """Serves until a signal arrives. Returns the exit code, or -N if signal N must end this process."""
        self._handle_signals()
        preloaded = await self._follow(self._options.entries)
        async with AsyncExitStack() as stack:
            http = await self._listen(stack)
            self._pool.begin(self._standbys.memory_bytes)
            starting = asyncio.create_task(self._become_ready(preloaded), name="preload")
            tending = asyncio.create_task(self._tend_regularly(), name="tend")
            await self._stopped.wait()
            self._manager.notify_stopping("stopping")
            http.announce_close()
            await self._pool.drain()
            only = self._options.only
            if self._exit_code == OK and only is not None and self._pool.has_failed(only):
                self._exit_code = ENGINE_DIED
            spent_s = time.monotonic() - self._stopped_s
            left_s = self._options.config.server.lifecycle.drain_grace_s - spent_s
            with suppress(TimeoutError):  # keeps the port open until --drain-grace is over, or a second signal
                await asyncio.wait_for(self._killed.wait(), max(0.0, left_s))
            for task in (tending, starting):
                task.cancel()
            await asyncio.gather(tending, starting, return_exceptions=True)
            http.is_forced = self._killed.is_set()
        self._manager.close()
        self._relay.close()
        return self._exit_code

    async def _listen(self, stack: AsyncExitStack) -> HttpServer:
        options, is_default = self._options, env.VLLM_HTTP_TIMEOUT_KEEP_ALIVE.raw is None
        server = options.config.server
        app_options = AppOptions(
            network=server.network,
            limits=options.config.limits,
            logging=server.logging,
            api_keys=self._credentials.api_keys,
            tls_context=self._credentials.tls_context,
            keep_alive_s=_KEEP_ALIVE_S if is_default else server.timeout_keep_alive_s,
            version=program_version(),
            has_single_model=options.only is not None,
            adds_request_ids=server.enable_request_id_headers,
            model_has_keys=options.model_has_keys,
        )
        self._http = create_http(self._pool, app_options)
        http = self._http.server
        serving = asyncio.create_task(http.serve(self._listener), name="http")
        stack.push_async_callback(asyncio.gather, serving)
        stack.callback(http.stop.set)
        self._credentials.start()
        stack.callback(self._credentials.close)
        if options.path is not None:
            loop = asyncio.get_running_loop()
            watch = FileWatch([options.path], lambda: loop.call_soon_threadsafe(self._request_reload))
            watch.start()
            stack.callback(watch.close)
        logger.info("%s on %s", options.only or f"{len(options.entries)} models", self._address)
        return http

    def place(self, entry: ModelEntry, number: int) -> ChildPlace:
        return ChildPlace(
            socket_path=self._places.socket_path(number),
            environment=self._places.environment(number, self._standbys.variables_for(entry)),
            relay=self._relay,
        )

    def keeps_imports(self, entry: ModelEntry) -> bool:
        return bool(self._standbys.variables_for(entry))

    def check_again(self, entry: ModelEntry) -> ModelEntry:
        return self._options.check_again(entry)

    async def before_stop(self, child: Child) -> None:
        await self._http.keep_answers()

    async def _become_ready(self, preloaded: list[str]) -> None:
        """Starts the standbys and reports the router as ready once the models `preloaded` have started."""
        await asyncio.gather(*map(self._preload, preloaded))
        if not self._stopped.is_set():
            self._is_ready = True
            await self._standbys.tend()
            self._manager.notify_ready(f"ready: {self._address}")

    async def _preload(self, name: str) -> None:
        try:
            await self._pool.load(name)
        except ModelRefused as err:
            if name != self._options.only:
                logger.warning("%s was not loaded: %s", name, err.message)
            else:
                self.give_up(name)

    def give_up(self, model: str) -> None:
        if self._stopped.is_set():
            return
        (status,) = self._pool.view()
        self._manager.notify_failure(status.reason)
        self._exit_code = self._pool.exit_code(model)
        limit, has_run = status.entry.restart_limit, status.last_start_s is not None
        if limit is not None and (has_run or self._exit_code not in (USAGE, START_FAILED)):
            logger.error("%s is not started again after %d failures in a row (--restart)", model, limit)
            self._exit_code = ENGINE_DIED
        self._stopped.set()

    async def _tend_regularly(self) -> None:
        """Starts standbys, but only after the preloaded models. Both would compete for the processor."""
        while True:
            await asyncio.sleep(_TEND_S)
            if self._is_ready:
                await self._standbys.tend()
            states = [status.state for status in self._pool.view()]
            status = f"{sum(state == 'ready' for state in states)} of {len(states)} models run"
            if status != self._status:
                self._status = status
                self._manager.notify_status(status)

    async def _follow(self, entries: Mapping[str, ModelEntry]) -> list[str]:
        """Replaces the models by these entries. Returns the names of the models to preload."""
        unneeded = self._standbys.follow(self._options.find_template_kinds(), entries.values())
        preloaded = self._pool.set_entries(entries)
        for standby in unneeded:
            await asyncio.to_thread(standby.close)
        return preloaded

    # Signals

    def _handle_signals(self) -> None:
        """Registers handlers. On SIGHUP, the router reads the file again, or ends if there is no file."""
        loop = asyncio.get_running_loop()
        has_file = self._options.reload is not None
        for number in _ENDING if has_file else (*_ENDING, signal.SIGHUP):
            if signal.getsignal(number) != signal.SIG_IGN:
                loop.add_signal_handler(number, self._end, number)
        if has_file:
            loop.add_signal_handler(signal.SIGHUP, self._request_reload)
        for number in _IGNORED:
            loop.add_signal_handler(number, logger.debug, "signal %d has no effect", number)
        for number in _STOPS:
            if signal.getsignal(number) != signal.SIG_IGN:
                loop.add_signal_handler(number, self._suspend, number)

    def _suspend(self, number: int) -> None:
        """Stops the models' process groups and this process for job control, until this process continues."""
        loop = asyncio.get_running_loop()
        self._pool.signal_groups(number)
        loop.remove_signal_handler(number)
        os.kill(os.getpid(), number)  # without job control, it returns at once
        loop.add_signal_handler(number, self._suspend, number)
        self._pool.signal_groups(signal.SIGCONT)

    def _end(self, number: int) -> None:
        now = time.monotonic()
        if not self._stopped.is_set():
            logger.info("stopping: running requests are answered, all others are refused")
            self._stopped.set()
            self._stopped_s = now
            is_usual = self._is_ready and number in (signal.SIGTERM, signal.SIGINT)
            self._exit_code = OK if is_usual else -number
        elif now - self._stopped_s > SAME_SIGNAL_S:
            logger.info("stopping at once")
            self._exit_code = -number
            self._killed.set()
            self._pool.kill()

    # The file of models

    def _request_reload(self) -> None:
        """Reads the file of models again. If the file changes during this, reads it once more."""
        assert self._options.reload is not None
        self._wants_reload = True
        if self._reloading is None or self._reloading.done():
            self._reloading = asyncio.create_task(self._reload(self._options.reload), name="reload")

    async def _reload(self, read: Callable[[], Mapping[str, ModelEntry]]) -> None:
        while self._wants_reload and not self._pool.is_draining:
            self._wants_reload = False
            try:
                entries = await asyncio.to_thread(read)
                await asyncio.to_thread(self._pool.read_sizes, entries)
            except ModelsFileError as err:
                logger.error("the file of models has faults, the previous one stays in use:\n%s", err)
            except (StartupError, OSError) as err:
                logger.error("the file of models cannot be used, the previous one stays in use: %s", err)
            else:
                if not self._pool.is_draining:
                    preloaded = await self._follow(entries)
                    logger.info("the file of models was read again: %d models", len(entries))
                    self._preloading = asyncio.gather(*map(self._preload, preloaded))
