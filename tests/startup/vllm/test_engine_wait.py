"""While vLLM waits for its engine, the main thread creates the renderer. The KV cache is populated zeros."""

import importlib
import threading
from collections.abc import Iterator
from contextlib import nullcontext
from ctypes import create_string_buffer
from types import ModuleType
from typing import Any
from unittest.mock import Mock

import pytest
import torch

from base.machine.libc import check, load_libc
from startup.imports.finder import place
from startup.vllm.patches import kv_cache
from startup.vllm.patches.engine_wait import EngineWait
from startup.vllm.patches.kv_cache import KV_CACHE
from startup.vllm.patches.late_renderer import _LateObject, create_renderer_in
from tests.startup.conftest import ToyPackages
from tests.support.waiting import wait_until

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


def _wait_for_engine(seen: list[Any]) -> None:
    utils: Any = importlib.import_module("vllm.v1.engine.utils")
    utils.wait_for_engine_startup(seen, utils.Launch())


@pytest.mark.parametrize("has_work", [True, False])
def test_if_there_is_work_it_is_done_on_the_main_thread_while_another_one_waits(has_work, wait):
    threads: list[threading.Thread] = []
    if has_work:
        wait.add(lambda: threads.append(threading.current_thread()))
    seen: list[Any] = []
    _wait_for_engine(seen)
    assert threads == [threading.main_thread()] * has_work
    assert seen == [not has_work]


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_an_error_of_the_work_stops_the_engine_and_the_wait(wait, error):
    wait.add(Mock(side_effect=error))
    with pytest.raises(error):
        _wait_for_engine(["waits"])
    assert not [thread for thread in threading.enumerate() if thread.name == "vllm-engine-wait"]


_CLIENT = """
from vllm.v1.engine import utils

events = []

class Renderer:
    def __init__(self, config):
        events.append("renderer")
        if config == "broken":
            raise ValueError("no tokenizer")
        self.tokenizer = "the tokenizer"
    def start_mm_warmup_in_background(self): events.append("warm-up")
    def shutdown(self): events.append("shutdown")

def renderer_from_config(config):
    return Renderer(config)

class InputProcessor:
    def __init__(self, vllm_config, renderer): self.renderer = renderer

class OutputProcessor:
    def __init__(self, tokenizer, *, log_stats): self.tokenizer, self.log_stats = tokenizer, log_stats

class AsyncLLM:
    def __init__(self, config, waits=True, fails=False):
        self.renderer = renderer = renderer_from_config(config)
        self.input_processor = InputProcessor(config, renderer=renderer)
        self.output_processor = OutputProcessor(renderer.tokenizer, log_stats=True)
        events.append("engine")
        renderer.start_mm_warmup_in_background()
        if waits:
            utils.wait_for_engine_startup([], None if fails else utils.Launch())
        self.handler = self.output_processor

    def shutdown(self):
        self.renderer.shutdown()
"""


@pytest.fixture
def module(toys: ToyPackages, wait: EngineWait) -> Any:
    """vLLM's module of the client, with both hooks."""
    toys.write("vllm.v1.engine.async_llm", _CLIENT)
    create_renderer_in(wait, nullcontext)
    return importlib.import_module("vllm.v1.engine.async_llm")


@pytest.mark.parametrize("waits", [True, False])
def test_the_engine_starts_before_the_renderer_is_created(module, waits):
    client = module.AsyncLLM("config", waits=waits)
    assert module.events == ["engine", "renderer", "warm-up"]
    assert type(client.renderer) is module.Renderer
    assert client.input_processor.renderer is client.renderer
    assert client.output_processor.tokenizer == "the tokenizer"
    assert client.output_processor.log_stats
    assert type(client.output_processor) is module.OutputProcessor


def test_a_late_object_counts_as_an_instance_of_its_class():
    created: list[str] = []
    late = _LateObject(lambda: created.append("object") or "text")
    assert isinstance(late, _LateObject)
    assert not created
    assert isinstance(late, str)
    assert late.upper() == "TEXT"
    assert created == ["object"]


def test_an_error_of_the_renderer_ends_the_start(module):
    with pytest.raises(ValueError, match="no tokenizer"):
        module.AsyncLLM("broken")
    assert module.AsyncLLM("config").renderer.tokenizer == "the tokenizer"  # the functions are in place again


def test_shutdown_after_a_failed_start_creates_no_renderer(module, wait):
    wait.add(lambda: wait_until(lambda: wait.has_failed))
    client = module.AsyncLLM.__new__(module.AsyncLLM)
    with pytest.raises(RuntimeError, match="the engine has failed"):
        client.__init__("config", fails=True)
    client.shutdown()
    assert module.events == ["engine"]


NUM_BYTES = kv_cache._LEAST_BYTES + 4096
PAGE = 4096
ALLOCATION = """
import torch

def allocate_kv_cache(buf_size, device):
    buf = torch.zeros(buf_size, dtype=torch.int8, device=device)
    return buf

def small():
    return torch.zeros(3, dtype=torch.int8, device="cpu"), torch.zeros((2, 2)), isinstance(torch.ones(1), torch.Tensor)
"""


@pytest.fixture
def utils(toys: Any) -> Iterator[ModuleType]:
    """The relevant part of vLLM's utils, imported with the hook."""
    toys.write("vllm.v1.worker.utils", ALLOCATION)
    place(KV_CACHE)
    place(KV_CACHE)
    yield importlib.import_module("vllm.v1.worker.utils")
    wait_for_pages()


def wait_for_pages() -> None:
    for thread in threading.enumerate():
        if thread.name == "kv-cache-pages":
            thread.join(60)
            assert not thread.is_alive()


def num_resident(cache: torch.Tensor) -> int:
    """The number of pages in memory (mincore(2))."""
    pages = create_string_buffer(-(-cache.nbytes // PAGE))
    check(load_libc().mincore(cache.data_ptr(), cache.nbytes, pages), "mincore")
    return sum(byte & 1 for byte in pages.raw)


def test_what_vllm_writes_while_pages_are_populated_stays(utils):
    cache = utils.allocate_kv_cache(NUM_BYTES, torch.device("cpu"))
    cache[:: PAGE * 3] = 7
    wait_for_pages()
    assert (cache.dtype, cache.shape, cache.device.type) == (torch.int8, (NUM_BYTES,), "cpu")
    assert torch.equal(cache[:: PAGE * 3], torch.full((-(-NUM_BYTES // (PAGE * 3)),), 7, dtype=torch.int8))
    cache[:: PAGE * 3] = 0
    assert not cache.any()
    assert num_resident(cache) == -(-NUM_BYTES // PAGE)


def test_if_memory_is_scarce_all_pages_are_there_before_vllm_goes_on(utils, monkeypatch):
    monkeypatch.setattr(kv_cache, "available_bytes", lambda: 2 * NUM_BYTES - 8192)
    assert num_resident(utils.allocate_kv_cache(NUM_BYTES, "cpu")) == -(-NUM_BYTES // PAGE)
    assert not any(thread.name == "kv-cache-pages" for thread in threading.enumerate())


def test_a_kernel_that_cannot_populate_pages_leaves_the_cache_to_torch(utils, monkeypatch):
    monkeypatch.setattr(kv_cache, "populate_pages", Mock(side_effect=OSError(22, "Invalid argument")))
    assert not utils.allocate_kv_cache(NUM_BYTES, "cpu").any()


def test_a_cache_that_is_too_large_fails_as_without_the_hook(utils):
    with pytest.raises(RuntimeError, match="can't allocate memory"):
        utils.allocate_kv_cache(1 << 60, "cpu")


def test_other_tensors_and_names_are_torchs_own(utils):
    small, matrix, is_tensor = utils.small()
    assert (small.tolist(), matrix.shape, matrix.dtype, is_tensor) == ([0, 0, 0], (2, 2), torch.float32, True)
    assert utils.allocate_kv_cache(NUM_BYTES, "meta").is_meta
