"""Drains vLLM's API server: after SIGTERM, running requests finish before vLLM stops its engine.

Without this module, vLLM stops its engine first, and then waits for streams that get no more tokens. The
module wraps uvicorn's application to track running requests. It also replaces the engine client's `shutdown`,
which vLLM calls after a signal. The replacement first drains in the same way as the embedded engine.
"""

import asyncio
import signal
import socket
import threading
import time
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Any, Final

from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from base.errors import EngineError
from base.lifecycle import Lifecycle
from base.server_settings import SAME_SIGNAL_S, LifecycleConfig
from server.operation.admission import RunningRequests, dead_response
from server.operation.drain import ERROR_DELIVERY_S, Drain
from server.terms.http_body.response_body import (
    UnavailableInfo,
    UnavailableResponse,
    failure_format,
    unavailable_answer,
)
from startup.port.probe_http import LIVE_PATH, PATH, READY_PATH
from startup.session.start_state import StartState
from startup.vllm.serving.control_socket import open_control
from startup.vllm.serving.engine_watch import create_watchdog, watch
from startup.vllm.serving.server_context import ServerContext
from startup.vllm.serving.serving_probes import ServingProbes
from startup.vllm.serving.start_metrics import forget_captures
from startup.vllm.serving.web_page import WebPage

if TYPE_CHECKING:
    from server.operation.engine_watchdog import EngineWatchdog
    from startup.processes.stop_signals import StopSignals

_REJECTED_GETS: Final = ("/health", "/ping", "/load")
"""GETs of load balancers, which a draining server rejects. Other GETs are answered until the end."""
_CLOSE: Final = (b"connection", b"close")
_LAST_ACCEPTS_S: Final = 0.02
"""Seconds in which uvicorn still accepts after the responder has ended."""
_SILENT_S: Final = 1.0
"""Seconds of silence after which an engine that must stop is killed at once."""
_STOPPED: Final = (0, -signal.SIGTERM, -signal.SIGINT)
"""Exit codes of an engine that was stopped by a signal."""
_ABORT_AFTER_S: Final = 0.25
"""Seconds from uvicorn's shutdown until connections of clients that do not read are cut."""


def drain_before_shutdown(
    server: Any,
    listeners: Sequence[socket.socket] | None,
    probes: ServingProbes | None,
    on_draining: Callable[[], None],
    context: ServerContext,
) -> None:
    """Makes vLLM drain before its shutdown. Called on the event loop before uvicorn's `server` accepts.

    Args:
        listeners: the server's listening sockets. Several API servers may share them.
        probes: if given, the responder accepts instead of uvicorn.
        on_draining: called on the event loop when the drain begins.
        context: the launcher's objects for this server.
    """
    if context.signals is not None:
        context.signals.take()  # vLLM's event loop has them by now
    state = getattr(server.config.app, "state", None)
    client = getattr(state, "engine_client", None)
    if client is not None:
        page = WebPage(context.state, server.config.app, client) if context.state and context.has_page else None
        app = server.config.loaded_app = DrainedApp(server.config.loaded_app, context.state, page)
        is_one_of_many = getattr(server, "peer_loads", None) is not None
        close_port = partial(_close_port, server, () if is_one_of_many else listeners or (), probes)
        timeout_s = float(client.vllm_config.shutdown_timeout)
        if is_one_of_many:  # the parent kills this process after the same time
            timeout_s = max(0.0, timeout_s - 2 * ERROR_DELIVERY_S)
        config = LifecycleConfig(shutdown_timeout_s=timeout_s)
        drain = Drain(app.lifecycle, app.running, app.fail_running, config, announce_close=on_draining)
        app.watchdog = create_watchdog(client, context, app)
        if probes is not None:
            app.lifecycle.subscribe(lambda _: probes.forget_answer())
        _drain_first(client, app, drain, close_port, context)
        if context.can_sleep:
            open_control(client, app.lifecycle, context.model_files)


async def _close_port(server: Any, listeners: Sequence[socket.socket], probes: ServingProbes | None) -> None:
    """Accepts waiting connections, then closes the port, so that the next server can use it early."""
    if probes is not None and server.started:
        await probes.end()
        await asyncio.sleep(_LAST_ACCEPTS_S)
    for listener in listeners:
        if listener.family != socket.AF_UNIX and server.started:
            with listener.dup() as last, suppress(OSError):
                for each in server.servers:
                    each.close()
                last.shutdown(socket.SHUT_RDWR)  # also for the launcher, which has a duplicate


def abort_connections(server: Any) -> None:
    """Cuts connections that are still open a moment after uvicorn has begun to shut down."""

    def abort() -> None:
        for connection in list(server.server_state.connections):
            if (transport := getattr(connection, "transport", None)) is not None:
                transport.abort()

    asyncio.get_running_loop().call_later(_ABORT_AFTER_S, abort)


class DrainedApp:
    """Wraps an ASGI application, counts its running requests, and rejects new requests during a drain.

    If no responder process answers probes, this application answers `/livez`, and `/readyz` like `/health`.
    With `start`, it answers `/startupz` and `/status.json`, with `page` also `/`. Several API servers have
    neither.
    """

    def __init__(self, app: ASGIApp, start: StartState | None = None, page: WebPage | None = None) -> None:
        self.lifecycle = Lifecycle()
        self.lifecycle.engine_ready()
        self.running = RunningRequests()
        self.watchdog: EngineWatchdog | None = None
        """Watches the application's engine. None if no engine is watched."""
        self._app = app
        self._start = start
        self._page = page
        self._failure: str | None = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        path = _path_of(scope)
        if path == LIVE_PATH:
            await Response()(scope, receive, send)
            return
        if self._page is not None and path:
            page = await self._page.answer(scope["method"], path)
            if page is not None:
                await page(scope, receive, send)
                return
        if self._start is not None and (body := self._start.json_of(path)) is not None:
            await Response(body, media_type="application/json")(scope, receive, send)
            return
        if path == READY_PATH:
            path = PATH
            scope = {**scope, "path": scope.get("root_path", "") + PATH, "raw_path": PATH.encode()}
        request = _Request(scope, send, self.lifecycle)
        if scope["type"] not in ("http", "websocket"):
            await self._app(scope, receive, send)
        elif self.lifecycle.state != "ready" and _is_rejected(scope, path):
            self.running.note_rejection()
            await request.fail("The server is shutting down")
        else:
            await self._serve(request, receive)

    @property
    def num_running(self) -> int:
        return self.running.num_running

    def engine_hangs(self, reason: str) -> None:
        """Ends all running requests, and rejects new ones."""
        self.lifecycle.engine_hangs(reason)
        self.fail_running(f"The engine hangs: {reason}")

    def fail_running(self, message: str) -> None:
        """Ends all running requests with this error."""
        self._failure = message
        self.running.interrupt()

    async def _serve(self, request: "_Request", receive: Receive) -> None:
        with self.running.hold() as task:
            try:
                await self._app(request.scope, receive, request.send)
            except asyncio.CancelledError:
                if self._failure is None or self.running.is_cancelled:
                    raise
                task.uncancel()
                await request.fail(self._failure)


class _Request:
    """One request, with the progress of its response."""

    def __init__(self, scope: Scope, send: Send, lifecycle: Lifecycle) -> None:
        self.scope = scope
        self._send = send
        self._lifecycle = lifecycle
        self._media_type: bytes | None = None
        """The media type of the response. None before it has begun."""
        self._has_ended = False

    @property
    def is_draining(self) -> bool:
        """Whether the server drains, so that the connection closes after the response."""
        return self._lifecycle.state == "draining"

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            headers = message.get("headers", ())
            self._media_type = next((value for name, value in headers if name.lower() == b"content-type"), b"")
            if self.is_draining:
                message = {**message, "headers": [*headers, _CLOSE]}
        elif message["type"] == "http.response.body" and not message.get("more_body", False):
            self._has_ended = True
        await self._send(message)

    async def fail(self, reason: str) -> None:
        """Ends a stream with an error event. If the response has not begun, sends a 503."""
        if self.scope["type"] != "http":
            await self._send({"type": "websocket.close", "code": 1012, "reason": reason})
            return
        failures = failure_format(self.scope["path"])
        if self._media_type is None:
            body, status, headers = unavailable_answer(self._refusal(reason), failures)
            headers += ((b"content-length", b"%d" % len(body)),)
            await self.send({"type": "http.response.start", "status": status, "headers": headers})
            await self.send({"type": "http.response.body", "body": body})
        elif not self._has_ended and self._media_type.startswith(b"text/event-stream"):
            body = failures.event(EngineError(reason)) + failures.end
            await self._send({"type": "http.response.body", "body": body, "more_body": False})
        # else uvicorn closes the connection in the middle of the body

    def _refusal(self, reason: str) -> UnavailableResponse:
        if self._lifecycle.is_hung:
            return dead_response(self._lifecycle)
        return UnavailableResponse(UnavailableInfo(message=reason), "draining")


def _drain_first(
    client: Any, app: DrainedApp, drain: Drain, close_port: Callable[[], Awaitable[None]], context: ServerContext
) -> None:
    """Replaces the method `shutdown` of one engine client. The replacement first drains."""
    end_engine, watchdog = client.shutdown, app.watchdog
    loop, loop_thread = asyncio.get_running_loop(), threading.get_ident()
    watching = loop.create_task(watch(watchdog, app.lifecycle, client)) if watchdog is not None else None

    def shutdown(timeout: float | None = None) -> None:
        """Called by vLLM on a thread after the first signal, and on the event loop when the process ends."""
        if threading.get_ident() != loop_thread and app.lifecycle.state == "ready":
            if context.note_engine_death is not None and _has_died(client):
                context.note_engine_death()  # vLLM would end with exit code 0
            asyncio.run_coroutine_threadsafe(_drain_and_close(drain, close_port, context.signals), loop).result()
        if watching is not None and not app.lifecycle.is_hung:
            loop.call_soon_threadsafe(watching.cancel)
        if watchdog is not None and watchdog.silence_s >= _SILENT_S:
            timeout = 0.0  # the engine would not react to vLLM's signal, either
        elif context.kills_engine:
            timeout = 0.0  # nothing runs any more; the engine's own end takes seconds
        if not (_has_died(client) or app.lifecycle.is_hung):
            forget_captures(context.record.folder)
        end_engine(timeout=timeout)

    client.shutdown = shutdown


async def _drain_and_close(
    drain: Drain, close_port: Callable[[], Awaitable[None]], signals: "StopSignals | None"
) -> None:
    """Drains, then closes the port. A second signal ends the wait."""
    loop, begin_s = asyncio.get_running_loop(), time.monotonic()

    def stop_waiting() -> None:
        if time.monotonic() - begin_s >= SAME_SIGNAL_S:
            drain.stop_waiting()
            if signals is not None:
                signals.end_soon()

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop_waiting)
    await drain.run()
    await close_port()


def _has_died(client: Any) -> bool:
    """Whether the engine has failed. A stop signal for all processes may have ended it, too."""
    manager = getattr(getattr(getattr(client, "engine_core", None), "resources", None), "engine_manager", None)
    codes = [getattr(process, "exitcode", None) for process in getattr(manager, "processes", ())]
    return bool(client.errored) and not any(code in _STOPPED for code in codes)


def _path_of(scope: Scope) -> str:
    """The path without the root path that uvicorn adds. Empty if the scope is not an HTTP request."""
    return scope["path"].removeprefix(scope.get("root_path", "")) if scope["type"] == "http" else ""


def _is_rejected(scope: Scope, path: str) -> bool:
    return scope["type"] == "websocket" or scope["method"] == "POST" or path in _REJECTED_GETS
