"""Replaced functions return the results of the original functions."""

import importlib
import inspect
import logging
import logging.config
import sys
from collections.abc import Iterator
from typing import Any

import pytest

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
    assert "_clear_cache" not in vars(logging.root.manager)


def test_a_configuration_that_fails_leaves_logging_as_it_was():
    make_calls_cheap()
    with pytest.raises(ValueError, match="version"):
        logging.config.dictConfig({"version": 2})
    assert "_clear_cache" not in vars(logging.root.manager)
