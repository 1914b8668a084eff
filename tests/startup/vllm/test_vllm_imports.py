"""Replaced functions have the results of the original ones; other subcommands are names without modules."""

import argparse
import importlib
import logging
import logging.config
from collections.abc import Iterator
from typing import Any

import pytest

from startup.vllm.imports import UNUSED_COMMANDS, make_calls_cheap, stub_unused_commands

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


def test_modules_of_other_subcommands_contain_only_names(toys):
    raises = "raise RuntimeError('imported')\n"
    for name in ("preload", "openai", "benchmark.main", "launch"):
        toys.write(f"vllm.entrypoints.cli.{name}", raises)
    toys.write("vllm.entrypoints.cli.serve", "value = 1\n")
    toys.write("vllm.entrypoints.cli.something_new", "value = 2\n")
    toys.fit(UNUSED_COMMANDS)
    stub_unused_commands()
    parser = argparse.ArgumentParser(prog="vllm")
    commands = parser.add_subparsers()
    for name in ("openai", "launch", "benchmark.main", "preload"):
        module = importlib.import_module(f"vllm.entrypoints.cli.{name}")
        for command in module.cmd_init():
            command.subparser_init(commands).set_defaults(dispatch_function=command.cmd)
    assert "{chat,complete,launch,bench,preload}" in parser.format_usage()
    assert importlib.import_module("vllm.entrypoints.cli.serve").value == 1
    assert importlib.import_module("vllm.entrypoints.cli.something_new").value == 2


def test_stubs_accept_any_options(toys):
    toys.write("vllm.entrypoints.cli.snapshot")
    toys.write("vllm.entrypoints.cli.benchmark.other")
    toys.fit(UNUSED_COMMANDS)
    stub_unused_commands()
    snapshot = importlib.import_module("vllm.entrypoints.cli.snapshot")
    assert [command.name for command in snapshot.cmd_init(create_requested=False)] == ["snapshot"]
    importlib.import_module("vllm.entrypoints.cli.benchmark.main").maybe_exec_rust_bench()
