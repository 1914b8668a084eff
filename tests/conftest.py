"""What all tests share: the real model, a guard against leaks, and the machine."""

import os
import signal
import threading
import time
from collections.abc import Generator, Iterator
from pathlib import Path

import psutil
import pytest

from tests.whole_machine import place_on_the_machine

_SETTLE_S = 60.0
_OWN_PROCESSES = ("resource_tracker", "forkserver")


def pytest_configure() -> None:
    """In a shell's background Ctrl-C is ignored, also by whatever the tests start and then interrupt."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_protocol(item: pytest.Item) -> Generator[None, object, object]:
    """A test marked `alone` runs, fixtures included, while no other worker's does; it waits outside of its time-out."""
    folder = item.config._tmp_path_factory.getbasetemp().parent
    with place_on_the_machine(folder, is_alone=item.get_closest_marker("alone") is not None):
        return (yield)


@pytest.fixture(scope="session")
def model_path() -> Path:
    """SmolLM2-135M-Instruct as bf16 safetensors: the default model, prepared by `make test` or here."""
    from startup.config import ModelConfig
    from startup.model.source import resolve_model

    return resolve_model(ModelConfig()).path


@pytest.fixture(autouse=True)
def leak_guard() -> Iterator[None]:
    """Restores the environment and fails a test that leaves a process or a thread behind."""
    environment = dict(os.environ)
    children, threads = _children(), set(threading.enumerate())
    yield
    _restore(environment)
    deadline = time.monotonic() + _SETTLE_S
    while (_children() - children or _threads() - threads) and time.monotonic() < deadline:
        time.sleep(0.02)
    left = [words for p in _children() - children if (words := _words(p)) is not None]
    assert not left, f"processes left behind: {left}"
    assert not (left_threads := _threads() - threads), f"threads left behind: {left_threads}"


def _restore(environment: dict[str, str]) -> None:
    """What has changed alone: to look at the environment is not safe for other threads while it is written to."""
    for name in os.environ.keys() - environment.keys():
        del os.environ[name]
    for name, value in environment.items():
        if os.environ.get(name) != value:
            os.environ[name] = value


def _children() -> set[psutil.Process]:
    return {p for p in psutil.Process().children(recursive=True) if not _is_own(p)}


def _is_own(process: psutil.Process) -> bool:
    """multiprocessing keeps its helpers for the life of the test run."""
    words = _words(process)
    return words is None or any(name in word for word in words for name in _OWN_PROCESSES)


def _words(process: psutil.Process) -> list[str] | None:
    """None of a process that has ended."""
    try:
        return process.cmdline()
    except psutil.Error:
        return None


def _threads() -> set[threading.Thread]:
    """Threads that somebody should have ended; libraries' daemon threads live as long as the run."""
    return {t for t in threading.enumerate() if not t.daemon}
