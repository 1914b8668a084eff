"""vLLM's engine starts before the renderer is made."""

import importlib
from typing import Any

import pytest

from startup.vllm.patches.early_engine import EARLY_ENGINE, start_engine_early
from startup.vllm.patches.engine_wait import EngineWait
from tests.startup.conftest import ToyPackages

_UTILS = """
def wait_for_engine_startup(): ...
"""
_ASYNC_LLM = """
from vllm.v1.engine import utils

steps = []

def renderer_from_config(config):
    steps.append("renderer")
    if config == "invalid":
        raise ValueError("no tokenizer")
    return Renderer()

class Renderer:
    def start_mm_warmup_in_background(self): steps.append("warm-up")

class InputProcessor:
    def __init__(self, config, renderer): steps.append("processor")

class Client:
    _renderer = None
    def __init__(self, **arguments):
        self.arguments = arguments
        steps.append("engine")
        utils.wait_for_engine_startup()
        steps.append("ready")
    def shutdown(self): steps.append("shutdown")

class EngineCoreClient:
    @staticmethod
    def make_async_mp_client(*, vllm_config, executor_class, log_stats, client_addresses=None, client_count=1,
                             client_index=0, renderer=None):
        return Client(config=vllm_config, log_stats=log_stats, index=client_index)

class AsyncLLM:
    def __init__(self, vllm_config, executor_class, log_stats, client_addresses=None, client_count=1, client_index=0):
        self.log_stats = log_stats or vllm_config == "own loggers"
        self.renderer = renderer = renderer_from_config(vllm_config)
        self.processor = InputProcessor(vllm_config, renderer)
        if vllm_config == "later error":
            raise ValueError("after the renderer")
        self.engine_core = EngineCoreClient.make_async_mp_client(
            vllm_config=vllm_config, executor_class=executor_class, log_stats=self.log_stats,
            client_addresses=client_addresses, client_count=client_count,
            client_index=7 if vllm_config == "other arguments" else client_index, renderer=renderer)
"""
_EARLY = ["engine", "renderer", "processor", "warm-up", "ready"]


@pytest.fixture
def vllm(toys: ToyPackages) -> Any:
    toys.write("vllm.v1.engine.utils", _UTILS)
    toys.write("vllm.v1.engine.async_llm", _ASYNC_LLM)
    toys.fit(EARLY_ENGINE)
    wait = EngineWait()
    wait.hook()
    start_engine_early(wait)
    return importlib.import_module("vllm.v1.engine.async_llm")


def test_the_renderer_is_made_while_the_engine_starts(vllm):
    llm = vllm.AsyncLLM("config", object, False)
    assert vllm.steps == _EARLY
    assert llm.engine_core._renderer is llm.renderer
    assert isinstance(llm.processor, vllm.InputProcessor)


def test_the_engine_gets_what_vllm_has_decided(vllm):
    llm = vllm.AsyncLLM("own loggers", object, log_stats=False, client_index=2)
    assert llm.engine_core.arguments == {"config": "own loggers", "log_stats": True, "index": 2}


def test_the_module_is_unchanged_afterwards(vllm):
    before = dict(vars(vllm))
    vllm.AsyncLLM("config", object, False)
    assert vars(vllm) == before


def test_an_engine_for_other_arguments_is_replaced(vllm):
    llm = vllm.AsyncLLM("other arguments", object, False)
    assert llm.engine_core.arguments["index"] == 7
    assert vllm.steps == [*_EARLY, "shutdown", "engine", "ready"]


def test_an_error_after_the_engine_was_started_stops_it(vllm):
    with pytest.raises(ValueError, match="after the renderer"):
        vllm.AsyncLLM("later error", object, False)
    assert vllm.steps == [*_EARLY, "shutdown"]


def test_an_error_of_the_renderer_is_raised_from_the_wait(vllm):
    with pytest.raises(ValueError, match="no tokenizer"):
        vllm.AsyncLLM("invalid", object, False)
    assert "ready" not in vllm.steps
