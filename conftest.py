"""Fixtures of all tests: the real model, and a guard against leaks."""

import faulthandler
import fcntl
import os
import shutil
import signal
import sys
import threading
import time
from collections.abc import Generator, Iterator
from contextlib import suppress
from hashlib import sha256
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory

import psutil
import pytest

from base.machine.processes import descendants
from tests.support.standby_process import OFF, StandbyProcess

_SETTLE_S = 60.0
_KERNEL_LISTS_CHILDREN = Path("/proc/thread-self/children").exists()
_SHARED_PROCESSES = ("resource_tracker", "forkserver")


def pytest_configure(config: pytest.Config) -> None:
    """Refuses missing paths, makes starts cold, writes bytecode, and restores signals.

    A test that wants a warm start starts a standby itself. Bytecode is written even if
    PYTHONDONTWRITEBYTECODE is set. Otherwise every worker would compile all tests in every run. A shell
    disables Ctrl-C for background commands and the processes that they start. This function enables Ctrl-C
    again, and the other signals that a shell or `nohup` disables.
    """
    for path in (argument.partition("::")[0] for argument in config.args):
        if not (config.invocation_params.dir / path).exists():  # xdist would only say that no test ran
            raise pytest.UsageError(f"{path} does not exist. ARGS takes pytest's arguments, such as a test's file.")
    os.environ.update(OFF)
    sys.dont_write_bytecode = False
    for number in (signal.SIGQUIT, signal.SIGHUP):
        signal.signal(number, signal.SIG_DFL)
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Generator[None, bool, bool]:
    """Ends the process of a test that its time limit has not ended.

    pytest-timeout raises once, in whatever runs. An event loop logs what a callback raises, and goes on.
    """
    marker = item.get_closest_marker("timeout")
    if limit_s := float(marker.args[0] if marker else item.config.getini("timeout")):
        faulthandler.dump_traceback_later(limit_s + _SETTLE_S, exit=True, file=sys.__stderr__)
    try:
        return (yield)
    finally:
        faulthandler.cancel_dump_traceback_later()


@pytest.fixture(scope="session")
def model_path() -> Path:
    """SmolLM2-135M-Instruct, the default model, as bf16 safetensors. Downloads it if `make test` has not."""
    from startup.files.download.obtain import resolve_model
    from startup.files.model.model_request import ModelRequest

    return resolve_model(ModelRequest()).path


@pytest.fixture(scope="session")
def tiny_llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model with random weights that loads at once. `build` keeps it, because its making takes seconds."""
    from tests.support import llamas

    folder = Path(__file__).parent / "build" / "tests"
    folder.mkdir(parents=True, exist_ok=True)
    source = Path(llamas.__file__).read_bytes() + version("transformers").encode()
    kept = folder / f"tiny-llama-{sha256(source).hexdigest()[:16]}"
    with folder.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not kept.exists():
            with TemporaryDirectory(dir=folder) as made:
                llamas.save_tiny_llama(Path(made, "model")).rename(kept)
    return Path(shutil.copytree(kept, tmp_path_factory.mktemp("tiny-llama"), dirs_exist_ok=True))


@pytest.fixture(scope="session")
def standby() -> Iterator[StandbyProcess]:
    """A standby for the embedded engine, for starts with `standby.environment`.

    All tests of a worker share this standby. A test that kills a standby or changes installed files
    starts its own `StandbyProcess`.
    """
    with StandbyProcess() as running:
        yield running


@pytest.fixture(scope="module", params=["cold", "warm"])
def cold_or_warm(request: pytest.FixtureRequest) -> dict[str, str]:
    """Variables for starts. Tests with this fixture run twice, the second time with warm starts."""
    if request.param == "cold":
        return dict(OFF)
    running: StandbyProcess = request.getfixturevalue("standby")
    return running.environment


@pytest.fixture(autouse=True)
def leak_guard() -> Iterator[None]:
    """Restores the environment and fails a test that leaves a process or a thread behind."""
    environment = dict(os.environ)
    children, threads = _children(), _threads()
    yield
    _restore(environment)
    deadline = time.monotonic() + _SETTLE_S
    left_children, left_threads = _children() - children, _threads() - threads
    while (left_children or left_threads) and time.monotonic() < deadline:
        time.sleep(0.02)
        left_children, left_threads = _children() - children, _threads() - threads
    commands = [command for child in left_children if (command := _command(child)) is not None]
    assert not commands, f"processes left behind: {commands}"
    assert not left_threads, f"threads left behind: {left_threads}"


def _restore(environment: dict[str, str]) -> None:
    """Writes only changed variables, because other threads must not read the environment during a write."""
    for name in os.environ.keys() - environment.keys():
        del os.environ[name]
    for name, value in environment.items():
        if os.environ.get(name) != value:
            os.environ[name] = value


def _children() -> set[psutil.Process]:
    if not _has_child():
        return set()
    if not _KERNEL_LISTS_CHILDREN:
        return {process for process in psutil.Process().children(recursive=True) if not _is_shared(process)}
    processes = set()
    for pid in descendants(os.getpid()):  # a tenth of the time in which psutil reads all processes of the machine
        with suppress(psutil.NoSuchProcess):
            processes.add(psutil.Process(pid))
    return {process for process in processes if not _is_shared(process)}


def _has_child() -> bool:
    """Whether this process has children. Needs one system call, while psutil reads /proc for milliseconds."""
    try:
        os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
    except ChildProcessError:
        return False
    return True


def _is_shared(process: psutil.Process) -> bool:
    """Whether the process has exited, or is a multiprocessing helper that lives as long as the test run."""
    command = _command(process)
    return command is None or any(name in argument for argument in command for name in _SHARED_PROCESSES)


def _command(process: psutil.Process) -> list[str] | None:
    """The process's command line. None if the process has exited."""
    try:
        return process.cmdline()
    except psutil.Error:
        return None


def _threads() -> set[threading.Thread]:
    """The threads that a test must end. Daemon threads of libraries live as long as the test run."""
    return {thread for thread in threading.enumerate() if not thread.daemon}
