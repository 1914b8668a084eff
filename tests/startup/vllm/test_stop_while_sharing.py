"""A server that is stopped right after it was ready first adds its compiled model to the location.

The upload to the location waits until the test releases it, so that every stop comes before its end.
"""

import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, Final, NamedTuple

import pytest

from tests.startup.vllm.fake_start import FakeStart, environment
from tests.startup.vllm.test_warm_start_of_vllm import WarmStart
from tests.support.s3_server import S3Server, s3_server
from tests.support.standby_process import StandbyProcess
from tests.support.waiting import wait_until

_LOCATION: Final = "s3://models/compiled"
_FINISHING: Final = f"the server ends once it has added what later starts need to {_LOCATION}"
_NOT_ADDED: Final = f"compiled models: nothing was added to {_LOCATION}: "
pytestmark = [pytest.mark.alone, pytest.mark.timeout(900)]
_UPLOAD_S: Final = 600.0
"""The process that adds has the lowest priority, so that other processes of a busy machine come first."""


class SlowStore:
    """A fake S3 server whose uploads wait until `released` is set."""

    def __init__(self, server: S3Server, monkeypatch: pytest.MonkeyPatch) -> None:
        from moto.s3.responses import S3Response

        self._server = server
        self.has_upload = threading.Event()
        self.released = threading.Event()
        handle = S3Response._key_response_put

        def wait_and_handle(response: Any, *arguments: Any) -> Any:
            self.has_upload.set()
            assert self.released.wait(300)
            return handle(response, *arguments)

        monkeypatch.setattr(S3Response, "_key_response_put", wait_and_handle)

    def environment(self, folder: Path) -> dict[str, str]:
        return environment(folder, FAKE_VLLM_COMPILES="1", **self._server.environment)

    def archives(self) -> list[str]:
        """The archives of compiled models."""
        return [name for name in self._server.names() if name.endswith(".zip") and "/starts-" not in name]


@pytest.fixture
def store(monkeypatch: pytest.MonkeyPatch) -> Iterator[SlowStore]:
    with s3_server() as server:
        store = SlowStore(server, monkeypatch)
        yield store
        store.released.set()


@contextmanager
def started(way: "Stop", store: SlowStore, folder: Path, model: str) -> Iterator[FakeStart]:
    """A server that is ready, and whose upload waits."""
    arguments = (model, "--compile-cache", _LOCATION, *way.arguments)
    variables = store.environment(folder)
    with ExitStack() as stack:
        if way.is_warm:
            standby = stack.enter_context(StandbyProcess("--for", "vllm-compiled", environment=variables))
            start: FakeStart = WarmStart(standby, folder, *arguments, **variables)
        else:
            start = FakeStart(folder, *arguments, env=variables)
        stack.enter_context(start)
        start.wait_ready()
        wait_until(store.has_upload.is_set, _UPLOAD_S)
        yield start


def _signalled(number: signal.Signals) -> Callable[[FakeStart], None]:
    return lambda start: os.kill(start.process.pid, number)


def _signalled_in_group(start: FakeStart) -> None:
    start.signal_all()


class Stop(NamedTuple):
    """A way to stop a server, and the arguments of its command line."""

    stop: Callable[[FakeStart], None] = _signalled(signal.SIGTERM)
    arguments: tuple[str, ...] = ()
    is_warm: bool = False


STOPS: Final = {
    "SIGTERM": Stop(),
    "SIGINT": Stop(_signalled(signal.SIGINT)),
    "SIGTERM to all processes": Stop(_signalled_in_group),
    "several API servers": Stop(arguments=("--api-server-count", "2")),
    "--restart": Stop(arguments=("--restart", "on-failure")),
    "warm start": Stop(is_warm=True),
}


@pytest.mark.parametrize("way", STOPS.values(), ids=STOPS)
def test_a_stopped_server_first_adds_its_compiled_model(way, store, folder, model):
    with started(way, store, folder, model) as start:
        way.stop(start)
        start.wait_logged(_FINISHING)
        assert not store.archives()
        store.released.set()
        assert start.process.wait(120) == 0
        assert _NOT_ADDED not in start.log
    assert len(store.archives()) == 1


def _kill_engine(start: FakeStart) -> None:
    start.named("VLLM::EngineCor").kill()


def _stop_twice(start: FakeStart) -> None:
    os.kill(start.process.pid, signal.SIGTERM)
    start.wait_logged(_FINISHING)
    start.signal_again()


class Cut(NamedTuple):
    """An end that does not wait for the location, its reason in the log, and the exit code."""

    reason: str
    end: Callable[[FakeStart], None] = _signalled(signal.SIGTERM)
    arguments: tuple[str, ...] = ()
    code: int = 0


CUTS: Final = {
    "time": Cut("the server must stop within 1 s", arguments=("--shutdown-timeout", "1")),
    "no time": Cut("the server must stop within 0 s", arguments=("--shutdown-timeout", "0")),
    "second signal": Cut("SIGTERM came while the server stopped", _stop_twice),
    "dead engine": Cut("vLLM has failed", _kill_engine, code=1),
}


@pytest.mark.parametrize("cut", CUTS.values(), ids=CUTS)
def test_a_server_that_cannot_wait_says_what_was_not_added(cut, store, folder, model):
    with started(Stop(arguments=cut.arguments), store, folder, model) as start:
        cut.end(start)
        assert start.process.wait(120) == cut.code
        assert start.log.count(_NOT_ADDED) == 1
        assert f"{_NOT_ADDED}{cut.reason}" in start.log
        assert "Traceback" not in start.log
    assert not store.archives()


def test_a_compiled_model_is_added_once(store, folder, model):
    """The location already has it, so that the second server does not owe it."""
    store.released.set()
    with started(Stop(), store, folder, model) as start:
        start.wait_logged("compiled models: added 1")
        assert start.terminate() == 0
    with FakeStart(folder, model, "--compile-cache", _LOCATION, env=store.environment(folder)) as start:
        start.wait_ready()
        assert start.terminate() == 0
        assert _NOT_ADDED not in start.log
    assert len(store.archives()) == 1
