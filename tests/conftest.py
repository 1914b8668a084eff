"""Fixtures shared by all tests: the real model, and a guard against leaks."""

import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

_SETTLE_S = 60.0
_OWN_PROCESSES = ("resource_tracker", "forkserver")


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
    os.environ.clear()
    os.environ.update(environment)
    deadline = time.monotonic() + _SETTLE_S
    while (_children() - children or _threads() - threads) and time.monotonic() < deadline:
        time.sleep(0.02)
    left = [p.cmdline() for p in _children() - children if p.is_running()]
    assert not left, f"processes left behind: {left}"
    assert not (left_threads := _threads() - threads), f"threads left behind: {left_threads}"


def _children() -> set[psutil.Process]:
    return {p for p in psutil.Process().children(recursive=True) if not _is_own(p)}


def _is_own(process: psutil.Process) -> bool:
    """multiprocessing keeps its helpers for the life of the test run."""
    try:
        return any(name in part for part in process.cmdline() for name in _OWN_PROCESSES)
    except psutil.Error:
        return True


def _threads() -> set[threading.Thread]:
    """Threads that somebody should have ended; libraries' daemon threads live as long as the run."""
    return {t for t in threading.enumerate() if not t.daemon}
