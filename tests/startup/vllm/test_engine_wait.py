"""While vLLM waits for its engine, the main thread does other work."""

import importlib
import threading
from typing import Any

import pytest

from startup.vllm.patches.engine_wait import EngineWait
from tests.startup.conftest import ToyPackages

_WAITING = """
import threading

class Manager:
    def __init__(self): self.is_stopped = threading.Event()
    def shutdown(self): self.is_stopped.set()

class Launch:
    def __init__(self): self.engine_manager = Manager()

def wait_for_engine_startup(seen, launch):
    seen.append(threading.current_thread() is threading.main_thread())
    if launch is None:
        raise RuntimeError("the engine has failed")
    if seen[0] == "waits":
        launch.engine_manager.is_stopped.wait(30)
"""


@pytest.fixture
def wait(toys: ToyPackages) -> EngineWait:
    toys.write("vllm.v1.engine.utils", _WAITING)
    wait = EngineWait()
    wait.hook()
    return wait


def _wait_for_engine(seen: list[Any], *, fails: bool = False) -> None:
    utils: Any = importlib.import_module("vllm.v1.engine.utils")
    utils.wait_for_engine_startup(seen, None if fails else utils.Launch())


def _fail() -> None:
    raise ValueError("the work fails")


def test_work_is_done_on_the_main_thread_while_another_one_waits(wait):
    threads: list[threading.Thread] = []
    wait.add(lambda: threads.append(threading.current_thread()))
    seen: list[Any] = []
    _wait_for_engine(seen)
    assert threads == [threading.main_thread()]
    assert seen == [False]


def test_without_work_vllm_waits_on_the_main_thread(wait):
    seen: list[Any] = []
    _wait_for_engine(seen)
    assert seen == [True]


def test_a_failed_engine_raises_vllms_error(wait):
    wait.add(lambda: None)
    with pytest.raises(RuntimeError, match="the engine has failed"):
        _wait_for_engine([], fails=True)


@pytest.mark.parametrize("error", [_fail, lambda: (_ for _ in ()).throw(KeyboardInterrupt())], ids=["error", "ctrl-c"])
def test_an_error_of_the_work_stops_the_engine_and_the_wait(wait, error):
    wait.add(error)
    with pytest.raises((ValueError, KeyboardInterrupt)):
        _wait_for_engine(["waits"])
    assert not [thread for thread in threading.enumerate() if thread.name == "vllm-engine-wait"]
