"""A fork saves a compiled model, which is complete after the warm-up, whatever happens to the fork."""

import importlib
import os
import select
import signal
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Final

import pytest

from startup.imports.finder import place
from startup.vllm.patches import saved_models
from startup.vllm.patches.saved_models import SAVED_MODELS
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
        tmp_file = self._aot_compilation_path + ".tmp"
        try:
            saving()
            with open(tmp_file, "w") as file:
                file.write(f"{os.getpid()} {self.state}")
            os.replace(tmp_file, self._aot_compilation_path)
        except RuntimeError:
            pass

    cls.__call__ = __call__
    cls.save_aot_compiled_function = save_aot_compiled_function
    return cls
"""
_WORKER = "class Worker:\n    def compile_or_warm_up_model(self):\n        return 'times'\n"


class _Model:
    state = "compiled"
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
    toys.write("vllm.platforms", "class current_platform:\n    is_cuda = staticmethod(lambda: True)\n")
    toys.fit(SAVED_MODELS)
    place(SAVED_MODELS)
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


_FAILURES = {
    "raises": _fail,
    "ends": lambda: os._exit(1),
    "hangs": lambda: time.sleep(1000),
    "does not end": _compute_for_ever,
}


@pytest.mark.parametrize("before", [None, "damaged"])
@pytest.mark.parametrize("failure", _FAILURES)
def test_the_process_saves_the_model_if_the_fork_does_not(failure, before, start, monkeypatch):
    name = "_LONGEST_S" if failure == "does not end" else "_LONGEST_IDLE_S"
    monkeypatch.setattr(saved_models, name, 0.1)
    if before is not None:
        start.path.write_text(before)
    start.decorators.saving = _FAILURES[failure]
    start.compile()
    pid = start.pid
    start.decorators.saving = lambda: None
    start.warm_up()
    assert (start.saved(), is_gone(pid)) == ((True, "compiled"), True)


_NO_FORKS: Final[dict[str, dict[str, object]]] = {
    "one processor": {"usable_count": lambda: 1},
    "little memory": {"available_bytes": lambda: 1 << 29},
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
