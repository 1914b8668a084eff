"""vLLM's search for a processor's chat template does not load the tokenizer again."""

import importlib
import sys
from typing import Any

import pytest

from startup.vllm.patches.processor_lookup import reuse_tokenizer
from tests.startup.toy_package import ToyPackages

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


def test_a_model_without_a_processor_has_the_given_tokenizer(renderer: Any) -> None:
    assert renderer._try_get_processor_chat_template("text", revision="main") == ("text", "main")


def test_a_processor_is_found_as_before(renderer: Any) -> None:
    found, _ = renderer._try_get_processor_chat_template("vision", revision=None)
    assert found == "the processor of vision"


@pytest.mark.parametrize("name", ["text", "invalid"])
def test_the_search_leaves_transformers_as_it_was(renderer: Any, name: str) -> None:
    before = vars(renderer.processing_auto).copy()
    try:
        renderer._try_get_processor_chat_template(name, revision=None)
    except ValueError:
        assert name == "invalid"
    assert vars(renderer.processing_auto) == before
