"""No tokenizer is loaded before it is used, and none twice."""

import importlib
import sys
from typing import Any

import pytest

from startup.vllm.patches.model_caches import load_tokenizer_late, reuse_tokenizer
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


def test_the_tokenizer_is_loaded_once_when_it_is_used(module):
    manager = module.StructuredOutputManager("a model")
    assert module.calls == []
    assert [manager.tokenizer, manager.tokenizer] == ["the tokenizer of a model"] * 2
    assert module.calls == ["a model"]


def test_a_manager_without_a_tokenizer_has_none(module):
    assert not hasattr(module.StructuredOutputManager(None), "tokenizer")


def test_another_tokenizer_can_be_set(module):
    manager = module.StructuredOutputManager("a model")
    manager.tokenizer = "another"
    assert manager.tokenizer == "another"
    assert module.calls == []


_PROCESSORS = """
class AutoTokenizer:
    def from_pretrained(name, **options): raise AssertionError("loaded from files")

def find(name):
    if name == "invalid": raise ValueError(name)
    return f"the processor of {name}" if name == "vision" else AutoTokenizer.from_pretrained(name)
"""
_RENDERER = """
from transformers.models.auto import processing_auto

def _try_get_processor_chat_template(tokenizer, *, revision):
    return processing_auto.find(tokenizer), revision
"""


@pytest.fixture
def renderer(toys: ToyPackages, monkeypatch: pytest.MonkeyPatch) -> Any:
    for name in [name for name in sys.modules if name.partition(".")[0] == "transformers"]:
        monkeypatch.delitem(sys.modules, name)
    toys.write("transformers.models.auto.processing_auto", _PROCESSORS)
    toys.write("vllm.renderers.hf", _RENDERER)
    reuse_tokenizer()
    return importlib.import_module("vllm.renderers.hf")


def test_a_model_without_a_processor_has_the_given_tokenizer(renderer):
    assert renderer._try_get_processor_chat_template("text", revision="main") == ("text", "main")


def test_a_processor_is_found_as_before(renderer):
    found, _ = renderer._try_get_processor_chat_template("vision", revision=None)
    assert found == "the processor of vision"


@pytest.mark.parametrize("name", ["text", "invalid"])
def test_the_search_leaves_transformers_as_it_was(renderer, name):
    before = vars(renderer.processing_auto).copy()
    try:
        renderer._try_get_processor_chat_template(name, revision=None)
    except ValueError:
        assert name == "invalid"
    assert vars(renderer.processing_auto) == before
