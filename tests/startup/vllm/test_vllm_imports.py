"""Replaced functions have the results of the original ones; other subcommands are names without modules."""

import argparse
import importlib

from startup.vllm.imports import UNUSED_COMMANDS, stub_unused_commands


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
