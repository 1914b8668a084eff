"""A server that is stopped right after it was ready first adds its compiled model to the location.

The process that adds it is held until the test releases it, so that every stop comes before its end.
"""

import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Final, NamedTuple

import pytest

from tests.startup.vllm.fake_start import FakeStart, environment
from tests.startup.vllm.test_warm_start_of_vllm import WarmStart
from tests.support.standby_process import StandbyProcess
from tests.support.waiting import wait_until

_FINISHING: Final = "the server ends once it has added what later starts need to "
_NOT_ADDED: Final = "compiled models: nothing was added to {}: "
pytestmark = [pytest.mark.alone, pytest.mark.timeout(900)]
_BEGIN_S: Final = 600.0
"""The process that adds has the lowest priority, so that other processes of a busy machine come first."""
_ADDS: Final = (b"startup.compiled_models.sharing:share", b"idle")
"""Arguments of a process that adds to a location. One that fetches is not idle."""


class HeldLocation:
    """A folder. A process of a start in `folder` that adds to it is stopped until `release`."""

    def __init__(self, folder: Path) -> None:
        self.address = str(folder / "compiled")
        self.has_begun = threading.Event()
        """Set once a process is held."""
        self._folder = folder
        self._held: set[int] = set()
        self._released = threading.Event()
        self._thread = threading.Thread(target=self._hold)
        self._thread.start()

    def release(self) -> None:
        self._released.set()
        self._thread.join()
        for pid in self._held:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)
        self._held.clear()

    def environment(self) -> dict[str, str]:
        return environment(self._folder, FAKE_VLLM_COMPILES="1")

    def archives(self) -> list[str]:
        """The archives of compiled models."""
        found = Path(self.address).glob("*/*.zip")
        return [archive.name for archive in found if not archive.parent.name.startswith("starts-")]

    def _hold(self) -> None:
        own = b"TMPDIR=%b" % os.fsencode(self._folder)
        while not self._released.wait(0.002):
            for process in Path("/proc").glob("[0-9]*"):
                with suppress(OSError):
                    arguments = (process / "cmdline").read_bytes().split(b"\0")
                    if set(_ADDS) <= set(arguments) and own in (process / "environ").read_bytes().split(b"\0"):
                        os.kill(int(process.name), signal.SIGSTOP)
                        self._held.add(int(process.name))
                        self.has_begun.set()


@pytest.fixture
def location(folder: Path) -> Iterator[HeldLocation]:
    location = HeldLocation(folder)
    yield location
    location.release()


@contextmanager
def started(way: "Stop", location: HeldLocation, folder: Path, model: str) -> Iterator[FakeStart]:
    """A server that is ready, and whose process that adds is held."""
    arguments = (model, "--compile-cache", location.address, *way.arguments)
    variables = location.environment()
    with ExitStack() as stack:
        if way.is_warm:
            standby = stack.enter_context(StandbyProcess("--for", "vllm-compiled", environment=variables))
            start: FakeStart = WarmStart(standby, folder, *arguments, **variables)
        else:
            start = FakeStart(folder, *arguments, env=variables)
        stack.enter_context(start)
        start.wait_ready()
        wait_until(location.has_begun.is_set, _BEGIN_S)
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
def test_a_stopped_server_first_adds_its_compiled_model(way, location, folder, model):
    with started(way, location, folder, model) as start:
        way.stop(start)
        start.wait_logged(f"{_FINISHING}{location.address}")
        assert not location.archives()
        location.release()
        assert start.process.wait(120) == 0
        assert _NOT_ADDED.format(location.address) not in start.log
    assert len(location.archives()) == 1


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
def test_a_server_that_cannot_wait_says_what_was_not_added(cut, location, folder, model):
    with started(Stop(arguments=cut.arguments), location, folder, model) as start:
        cut.end(start)
        assert start.process.wait(120) == cut.code
        not_added = _NOT_ADDED.format(location.address)
        assert start.log.count(not_added) == 1
        assert f"{not_added}{cut.reason}" in start.log
        assert "Traceback" not in start.log
    assert not location.archives()


def test_a_compiled_model_is_added_once(location, folder, model):
    """The location already has it, so that the second server does not owe it."""
    location.release()
    arguments = (model, "--compile-cache", location.address)
    with FakeStart(folder, *arguments, env=location.environment()) as start:
        start.wait_ready()
        start.wait_logged("compiled models: added 1")
        assert start.terminate() == 0
    with FakeStart(folder, *arguments, env=location.environment()) as start:
        start.wait_ready()
        assert start.terminate() == 0
        assert _NOT_ADDED.format(location.address) not in start.log
    assert len(location.archives()) == 1
