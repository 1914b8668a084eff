"""Replaced functions return the results of the original functions."""

import copy
import importlib
import inspect
import logging
import logging.config
import sys
from collections.abc import Iterator
from typing import Any

import pytest
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

from startup.imports.cheap_calls import make_calls_cheap

_UTILS = """
import inspect, sys

def get_source(stacklevel):
    frame = inspect.getframeinfo(sys._getframe(stacklevel))
    return f"{frame.filename}:{frame.lineno}"
"""


@pytest.fixture(autouse=True)
def _keep_logging() -> Iterator[None]:
    configure = logging.config.dictConfig
    yield
    logging.config.dictConfig = configure


@pytest.mark.thorough
def test_an_operators_source_is_the_same(toys):
    toys.write("torch._library.utils", _UTILS)
    toys.write("plain.utils", _UTILS)
    plain: Any = importlib.import_module("plain.utils")
    make_calls_cheap()
    cheap: Any = importlib.import_module("torch._library.utils")
    assert cheap.get_source(1) == plain.get_source(1)  # the same line
    assert cheap.get_source is not plain.get_source


def test_the_module_of_a_frame_is_the_same(monkeypatch):
    library: Any = importlib.import_module("torch.library")
    monkeypatch.setattr(library, "inspect", inspect)
    make_calls_cheap()
    make_calls_cheap()
    assert library.inspect.getmodule is not inspect.getmodule
    frame, foreign = sys._getframe(), sys._getframe(1)
    for asked in (frame, foreign, make_calls_cheap, library, importlib.import_module):
        assert library.inspect.getmodule(asked) is inspect.getmodule(asked)
    exec("module = get(sys._getframe())", named := {"sys": sys, "get": library.inspect.getmodule})
    assert named["module"] is None
    assert library.inspect.signature is inspect.signature


def test_loggers_are_configured_as_before():
    make_calls_cheap()
    parent, child = logging.getLogger("cheap"), logging.getLogger("cheap.child")
    child.setLevel(logging.ERROR)
    assert not child.isEnabledFor(logging.INFO)
    logging.config.dictConfig(
        {"version": 1, "disable_existing_loggers": False, "loggers": {"cheap": {"level": "INFO"}}}
    )
    assert parent.level == logging.INFO
    assert child.isEnabledFor(logging.INFO), "the cached level was cleared"
    with pytest.raises(ValueError, match="version"):
        logging.config.dictConfig({"version": 2})
    assert "_clear_cache" not in vars(logging.root.manager)


_LETTERS = {"[UNK]": 0, "a": 1, "b": 2, "c": 3, "ab": 4, "\u2581": 5, "##b": 6}
_MODELS = {
    "BPE": lambda: models.BPE(_LETTERS, [("a", "b")], unk_token="[UNK]", byte_fallback=True),
    "Unigram": lambda: models.Unigram([(letter, -1.0) for letter in _LETTERS], unk_id=0),
    "WordPiece": lambda: models.WordPiece(_LETTERS, unk_token="[UNK]"),
    "WordLevel": lambda: models.WordLevel(_LETTERS, unk_token="[UNK]"),
}


@pytest.fixture(params=_MODELS)
def tokenizer(request: pytest.FixtureRequest) -> Iterator[Tokenizer]:
    """A tokenizer with all parts and with each kind of token. Its copies are cheap."""
    tokenizer = Tokenizer(_MODELS[request.param]())
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFC(), normalizers.Lowercase()])
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    tokenizer.post_processor = processors.TemplateProcessing("[UNK] $A", special_tokens=[("[UNK]", 0)])
    kinds = {"special": True}, {"lstrip": True}, {"single_word": True}, {"special": True, "normalized": True}
    tokenizer.add_tokens([AddedToken(f"<{number}>", **kind) for number, kind in enumerate(kinds)])
    tokenizer.enable_truncation(7, stride=2)
    tokenizer.enable_padding(pad_id=3, length=9)
    make_calls_cheap()
    yield tokenizer
    del Tokenizer.__deepcopy__  # type: ignore[attr-defined]


def test_a_copied_tokenizer_is_the_same_and_leaves_the_original_alone(tokenizer):
    copied, before = copy.deepcopy(tokenizer), tokenizer.to_str()
    assert copied.to_str() == before
    for text in ("a <0> <1> <2>x<3> b", "AB c", "", "\N{SNOWMAN}"):
        numbers = tokenizer.encode(text).ids
        assert copied.encode(text).ids == numbers
        assert copied.decode(numbers) == tokenizer.decode(numbers)
    copied.add_tokens(["<new>"])
    copied.no_truncation()
    copied.no_padding()
    copied.pre_tokenizer.replacement = "_"
    copied.normalizer = None
    assert tokenizer.to_str() == before


def test_a_tokenizer_whose_numbers_have_gaps_is_copied_as_text(tokenizer):
    tokenizer.model = models.WordLevel({"a": 0, "<unk>": 1}, unk_token="<unk>")
    assert copy.deepcopy(tokenizer).to_str() == Tokenizer.from_str(tokenizer.to_str()).to_str()
