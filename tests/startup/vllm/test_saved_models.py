"""A fork saves a compiled model, which is complete after the warm-up, whatever happens to the fork."""

import importlib
import os
import resource
import select
import signal
import tempfile
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Final

import pytest

from startup.imports.finder import place
from startup.vllm.patches import saved_models
from startup.vllm.patches.saved_models import FAILED_STARTS, SAVED_MODELS
from tests.startup.conftest import ToyPackages
from tests.support.waiting import is_gone, wait_until

_DECORATORS = """
import os

saving = lambda: None

def _support_torch_compile(cls, dynamic_arg_dims):
    def __call__(self, *args, **kwargs):
        self.aot_compiled_fn = self.aot_compile(*args, **kwargs)
        self.save_aot_compiled_function()

    def save_aot_compiled_function(self):
        try:
            tmp_file = f"{self._aot_compilation_path}.{os.getpid()}.tmp"
            with open(tmp_file, "w") as file:
                file.write(f"{os.getpid()} {self.state}")
                file.flush()
                saving()
            os.replace(tmp_file, self._aot_compilation_path)
        except Exception:
            pass

    cls.__call__ = __call__
    cls.save_aot_compiled_function = save_aot_compiled_function
    return cls
"""
_WORKER = "class Worker:\n    def compile_or_warm_up_model(self):\n        return 'times'\n"
_ENGINE = """
class EngineCore:
    def _initialize_kv_caches(self, vllm_config):
        raise self.error
"""


class _Model:
    state = "compiled"
    vllm_config = SimpleNamespace(parallel_config=SimpleNamespace(world_size_across_dp=2))
    _aot_compilation_path: str

    def aot_compile(self) -> str:
        return "function"


class _Start:
    """A worker with a model of a fresh class."""

    def __init__(self, path: Path) -> None:
        self.decorators: Any = importlib.import_module("vllm.compilation.decorators")
        self.path = path
        kind = type("Model", (_Model,), {})
        for _ in range(2):  # vLLM's decorators may be nested
            kind = self.decorators._support_torch_compile(kind, {})
        self.model: Any = kind()
        self.model._aot_compilation_path = str(path)

    def compile(self) -> None:
        self.model()

    def warm_up(self) -> str:
        return str(importlib.import_module("vllm.v1.worker.gpu_worker").Worker().compile_or_warm_up_model())

    def saved(self) -> tuple[bool, str]:
        """Whether this process has saved the model, and in which state."""
        pid, _, state = self.path.read_text().partition(" ")
        return int(pid) == os.getpid(), state

    @property
    def pid(self) -> int:
        return saved_models._State.running[-1].pid


@pytest.fixture
def start(toys: ToyPackages, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> _Start:
    toys.write("vllm.compilation.decorators", _DECORATORS)
    toys.write("vllm.v1.worker.gpu_worker", _WORKER)
    toys.write("vllm.v1.engine.core", _ENGINE)
    toys.write("vllm.platforms", "class current_platform:\n    is_cuda = staticmethod(lambda: True)\n")
    for hook in (SAVED_MODELS, FAILED_STARTS):
        toys.fit(hook)
        place(hook)
    importlib.import_module("vllm.platforms")
    monkeypatch.setattr(saved_models, "usable_count", lambda: 2)
    monkeypatch.setattr(saved_models, "available_bytes", lambda: 0)
    monkeypatch.setattr(saved_models._State, "is_warm", False)
    return _Start(tmp_path / "model")


@pytest.mark.parametrize("before", [None, "damaged"])
def test_a_fork_saves_the_model_of_the_moment_at_which_it_was_compiled(before, start):
    if before is not None:
        start.path.write_text(before)
    start.compile()
    start.model.state = "has run"
    assert start.warm_up() == "times"
    assert (start.saved(), saved_models._State.running) == ((False, "compiled"), [])


def _fail() -> None:
    raise RuntimeError("CUDA cannot be used in a fork")


def _compute_for_ever() -> None:
    while True:
        pass


def _fill_disk() -> None:
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))
    with tempfile.TemporaryFile() as file:
        file.write(bytes(8192))


_LOCK = threading.Lock()
"""Another thread holds it when the process forks."""
_FAILURES = {
    "raises": _fail,
    "ends": lambda: os._exit(1),
    "hangs": lambda: time.sleep(1000),
    "waits for a lock": _LOCK.acquire,
    "does not end": _compute_for_ever,
    "gets SIGTERM": lambda: signal.raise_signal(signal.SIGTERM),
    "gets SIGKILL": lambda: signal.raise_signal(signal.SIGKILL),
    "gets SIGSTOP": lambda: signal.raise_signal(signal.SIGSTOP),
    "fills the disk": _fill_disk,
}


@pytest.mark.parametrize("before", [None, "damaged"])
@pytest.mark.parametrize("failure", _FAILURES)
def test_the_process_saves_the_model_if_the_fork_does_not(failure, before, start, monkeypatch):
    name = "_LONGEST_S" if failure == "does not end" else "_LONGEST_IDLE_S"
    monkeypatch.setattr(saved_models, name, 0.1)
    if before is not None:
        start.path.write_text(before)
    start.decorators.saving = _FAILURES[failure]
    with _held_by_another_thread(_LOCK):
        start.compile()
    pid = start.pid
    start.decorators.saving = lambda: None
    start.warm_up()
    assert (start.saved(), is_gone(pid)) == ((True, "compiled"), True)
    assert list(start.path.parent.glob("model*")) == [start.path], "a part of the fork's file is left"


@contextmanager
def _held_by_another_thread(lock: threading.Lock) -> Iterator[None]:
    with ThreadPoolExecutor(1) as pool:
        pool.submit(lock.acquire).result()
        yield
        pool.submit(lock.release).result()


def test_if_no_process_can_save_the_start_goes_on(start):
    start.decorators.saving = _fail
    start.compile()
    assert start.warm_up() == "times"
    assert not start.path.exists()


def test_memory_that_runs_out_ends_the_fork_first(start):
    score = start.path.with_name("score")
    start.decorators.saving = lambda: score.write_text(Path("/proc/self/oom_score_adj").read_text())
    own = Path("/proc/self/oom_score_adj").read_text()
    start.compile()
    start.warm_up()
    assert (int(score.read_text()), Path("/proc/self/oom_score_adj").read_text()) == (1000, own)


def _fail_start(error: Exception, num_ranks: int, executor: object) -> None:
    engine = importlib.import_module("vllm.v1.engine.core").EngineCore()
    engine.error, engine.model_executor = error, executor
    with pytest.raises(type(error)) as raised:
        engine._initialize_kv_caches(SimpleNamespace(parallel_config=SimpleNamespace(world_size=num_ranks)))
    assert raised.value is error


@pytest.mark.parametrize(("error", "num_ranks"), [(ValueError("no KV cache"), 2), (RuntimeError("no memory"), 1)])
def test_a_start_that_fails_saves_its_model_first(error, num_ranks, start):
    start.decorators.saving = lambda: time.sleep(0.2)
    start.compile()
    _fail_start(error, num_ranks, SimpleNamespace(collective_rpc=lambda function, timeout: function("worker")))
    assert start.saved() == (False, "compiled")


def test_ranks_that_may_wait_for_a_failed_one_are_not_asked(start):
    calls: list[object] = []
    executor = SimpleNamespace(collective_rpc=lambda function, timeout: calls.append(function))
    _fail_start(RuntimeError("a worker failed"), 2, executor)
    assert calls == []


def test_an_error_without_workers_is_reported_as_it_is(start):
    _fail_start(ValueError("no KV cache"), 1, None)


_NO_FORKS: Final[dict[str, dict[str, object]]] = {
    "one processor": {"usable_count": lambda: 1},
    "little memory for the forks of two ranks": {"available_bytes": lambda: 3 << 29},
    "no GPU": {"PLATFORM": SimpleNamespace(get=lambda: SimpleNamespace(is_cuda=lambda: False))},
}


@pytest.mark.parametrize("reason", _NO_FORKS)
def test_without_a_processor_memory_or_gpu_the_process_saves_the_model_at_once(reason, start, monkeypatch):
    for name, value in _NO_FORKS[reason].items():
        monkeypatch.setattr(saved_models, name, value)
    start.compile()
    assert start.saved() == (True, "compiled")


def test_a_model_that_is_compiled_after_the_warm_up_is_saved_at_once(start):
    start.warm_up()
    start.compile()
    assert start.saved() == (True, "compiled")


def test_the_fork_keeps_no_descriptor_open(start):
    read, write = os.pipe()
    start.decorators.saving = lambda: time.sleep(1000)
    start.compile()
    os.close(write)
    is_closed = bool(select.select([read], [], [], 60.0)[0])
    os.close(read)
    os.kill(start.pid, signal.SIGKILL)
    start.decorators.saving = lambda: None
    start.warm_up()
    assert is_closed


def test_the_fork_ends_with_its_process(start):
    start.decorators.saving = lambda: time.sleep(1000)
    read, write = os.pipe()
    engine = os.fork()
    if engine == 0:
        start.compile()
        os.write(write, b"%d" % start.pid)
        signal.pause()
    fork = int(os.read(read, 20))
    os.kill(engine, signal.SIGKILL)
    os.waitpid(engine, 0)
    wait_until(lambda: is_gone(fork))
    for fd in (read, write):
        os.close(fd)
