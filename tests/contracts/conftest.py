"""The addresses that a contract is run against: the embedded server, the router, and a start's responder."""

import asyncio
import threading
from collections.abc import Callable, Coroutine, Iterator
from contextlib import AsyncExitStack, ExitStack, contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final, NamedTuple

import pytest
import uvloop

from server.terms.limits import LimitsConfig
from startup.port.listener import listen
from startup.port.responder import StartupResponder
from tests.router.http.small_router import SmallRouter
from tests.server.http.conftest import _shared_engine, _start, encode, renderer
from tests.startup.port.conftest import Answers

__all__ = ["_shared_engine", "_start", "encode", "renderer"]

MAX_CONNECTIONS: Final = 20
_PATIENT: Final = LimitsConfig(max_body_bytes=1000, max_connections=MAX_CONNECTIONS)
_IMPATIENT: Final = LimitsConfig(header_timeout_s=0.3, body_timeout_s=0.3)


class Served(NamedTuple):
    """The port of a server, and of one whose time-outs are short."""

    patient: int
    impatient: int


@contextmanager
def _embedded(limits: LimitsConfig, start: Callable[..., Any]) -> Iterator[int]:
    with start(limits=limits) as server:
        yield int(server.url.rpartition(":")[2])


@contextmanager
def _router(limits: LimitsConfig, _: Callable[..., Any]) -> Iterator[int]:
    """A router in a thread, with two models that do not run."""
    loop = uvloop.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, name="router")
    thread.start()

    def run(work: Coroutine[Any, Any, Any]) -> None:
        asyncio.run_coroutine_threadsafe(work, loop).result(60)

    stack = AsyncExitStack()
    with TemporaryDirectory(prefix="r") as folder:
        router = SmallRouter(Path(folder), stack)
        run(router.serve("m", "n", limits=limits))
        yield router.port
        run(stack.aclose())
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()


@contextmanager
def _starting(_: LimitsConfig, __: Callable[..., Any]) -> Iterator[int]:
    """The responder of a start, also of vLLM's."""
    with listen(host="127.0.0.1", port=0, uds=None) as listener, StartupResponder(listener, Answers()):
        yield listener.getsockname()[1]


_KINDS: Final = {"embedded": _embedded, "router": _router, "starting": _starting}


@pytest.fixture(scope="module")
def served(request: pytest.FixtureRequest, _start: Callable[..., Any]) -> Iterator[Served]:
    """The ports of a kind of server."""
    with ExitStack() as stack:
        yield Served(*(stack.enter_context(_KINDS[request.param](limits, _start)) for limits in (_PATIENT, _IMPATIENT)))
