"""How the launcher learns that vLLM serves, whichever process it is that does, and that it is about to stop.

With one API server that is the launcher's own process; with several, processes that it starts tell it over a pipe.
"""

import functools
import os
import select
import threading
from collections.abc import Callable
from contextlib import suppress
from types import ModuleType
from typing import Any, Final, NamedTuple

from startup.processes import group_signals
from startup.vllm.import_hooks import after_import

_SERVING: Final = b"s"
_READY: Final = b"r"
_HAND_OVER_S: Final = 10.0
"""How long a process that serves waits for the launcher to say that nobody else accepts any more."""


class ChildPipes(NamedTuple):
    """What a child has of the launcher's pipes."""

    write_fd: Any
    """Where it tells that it serves."""
    free_fd: Any
    """Its other end is closed once the port is the children's alone."""


class ServingEvents:
    """The launcher's side; `on_serving` comes before anything is accepted, `on_ready` once vLLM accepts.

    Both are called once, on the event loop of the main thread or, where another process serves, on a thread of its own.
    `on_stopping` is called on the event loop alone: of several API servers, one may end and the others go on.
    """

    def __init__(
        self, *, on_serving: Callable[[], None], on_ready: Callable[[], None], on_stopping: Callable[[], None]
    ) -> None:
        self._on_serving = _once(on_serving)
        self._on_ready = _once(on_ready)
        self._on_stopping = _once(on_stopping)
        self._read_fd, write_fd = os.pipe()
        free_fd, self._taken_fd = os.pipe()
        self.ends = ChildPipes(write_fd, free_fd)

    def follow(self) -> None:
        """From now on; to be called once there are threads anyway."""
        hook_uvicorn(self._on_serving, self._on_ready, self._on_stopping)
        group_signals.start_thread(threading.Thread(target=self._follow_children, name="vllm-notices", daemon=True))

    def _follow_children(self) -> None:
        """Until one is ready; the pipe's other end stays open here, hence there is no end of file."""
        free_port = _once(lambda: os.close(self._taken_fd))
        with suppress(OSError):
            while notice := os.read(self._read_fd, 1):
                if notice == _SERVING:
                    self._on_serving()
                    free_port()
                else:
                    self._on_ready()
                    return


def report_serving_from_child(ends: ChildPipes) -> None:
    """In a child: its uvicorn, if it has one, tells the launcher, and accepts when nobody else does any more."""

    def tell(notice: bytes) -> None:
        with suppress(OSError):
            os.write(ends.write_fd, notice)

    def take_port() -> None:
        tell(_SERVING)
        poll = select.poll()
        poll.register(ends.free_fd, 0)
        poll.poll(_HAND_OVER_S * 1000)

    hook_uvicorn(take_port, lambda: tell(_READY), lambda: None)


def hook_uvicorn(on_serving: Callable[[], None], on_ready: Callable[[], None], on_stopping: Callable[[], None]) -> None:
    """Has uvicorn, once it is imported in this process, call these before it accepts, once it does, and as it stops.

    Where uvicorn is not as expected, the first two are called when it is imported: a responder that never
    stopped would take requests away from it.
    """

    def hook(uvicorn: ModuleType) -> None:
        server = getattr(uvicorn, "Server", None)
        startup, shutdown = getattr(server, "startup", None), getattr(server, "shutdown", None)
        if startup is None:
            on_serving()
            on_ready()
            return

        @functools.wraps(startup)
        async def startup_and_tell(self: Any, *args: Any, **kwargs: Any) -> None:
            on_serving()
            await startup(self, *args, **kwargs)
            if self.started:
                on_ready()

        uvicorn.Server.startup = startup_and_tell
        if shutdown is None:
            return

        @functools.wraps(shutdown)
        async def tell_and_shutdown(self: Any, *args: Any, **kwargs: Any) -> None:
            on_stopping()
            await shutdown(self, *args, **kwargs)

        uvicorn.Server.shutdown = tell_and_shutdown

    after_import("uvicorn.server", hook)


def _once(function: Callable[[], None]) -> Callable[[], None]:
    lock = threading.Lock()

    def call() -> None:
        if lock.acquire(blocking=False):
            function()

    return call
