"""The engine's tokenizer for structured output is loaded when it is used."""

import importlib
from typing import Any

import pytest

from startup.vllm.patches.tokenizers import load_tokenizer_late
from tests.startup.toy_package import ToyPackages

_MODULE = """
calls = []

def cached_tokenizer_from_config(model_config):
    calls.append(model_config)
    return f"the tokenizer of {model_config}"

class StructuredOutputManager:
    def __init__(self, model_config):
        if model_config:
            self.tokenizer = cached_tokenizer_from_config(model_config=model_config)
"""


@pytest.fixture
def module(toys: ToyPackages) -> Any:
    toys.write("vllm.v1.structured_output", _MODULE)
    load_tokenizer_late()
    return importlib.import_module("vllm.v1.structured_output")


def test_the_tokenizer_is_loaded_once_when_it_is_used(module: Any) -> None:
    manager = module.StructuredOutputManager("a model")
    assert module.calls == []
    assert [manager.tokenizer, manager.tokenizer] == ["the tokenizer of a model"] * 2
    assert module.calls == ["a model"]


def test_a_manager_without_a_tokenizer_has_none(module: Any) -> None:
    assert not hasattr(module.StructuredOutputManager(None), "tokenizer")


def test_another_tokenizer_can_be_set(module: Any) -> None:
    manager = module.StructuredOutputManager("a model")
    manager.tokenizer = "another"
    assert manager.tokenizer == "another"
    assert module.calls == []
