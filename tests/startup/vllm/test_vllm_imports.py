"""Replaced functions return the original results. Other subcommands are listed without their modules."""

import argparse
import importlib
import sys

import pytest

from startup.vllm.vllm_imports import UNUSED_COMMANDS, import_leniently, stub_unused_commands


def test_modules_of_other_subcommands_contain_only_names(toys):
    others = ("openai", "launch", "benchmark.main", "preload", "snapshot")
    for name in others:
        toys.write(f"vllm.entrypoints.cli.{name}", "raise RuntimeError('imported')\n")
    toys.write("vllm.entrypoints.cli.serve", "value = 1\n")
    toys.write("vllm.entrypoints.cli.something_new", "value = 2\n")
    toys.fit(UNUSED_COMMANDS)
    stub_unused_commands()
    parser = argparse.ArgumentParser(prog="vllm")
    commands = parser.add_subparsers()
    for name in others:
        module = importlib.import_module(f"vllm.entrypoints.cli.{name}")
        for command in module.cmd_init(create_requested=False):
            command.subparser_init(commands).set_defaults(dispatch_function=command.cmd)
    assert "{chat,complete,launch,bench,preload,snapshot}" in parser.format_usage()
    importlib.import_module("vllm.entrypoints.cli.benchmark.main").maybe_exec_rust_bench()
    assert importlib.import_module("vllm.entrypoints.cli.serve").value == 1
    assert importlib.import_module("vllm.entrypoints.cli.something_new").value == 2


_PARTS = {
    "__init__": "from .inner.model import model",
    "inner/__init__": "",
    "inner/model": "from {package}.inner.kernels import kernel\nfrom {package}.common.names import name\nmodel = name",
    "inner/kernels": "import {package}_gpu\nkernel = 1",
    "common/__init__": "",
    "common/names": "name = 'a model'",
}


@pytest.mark.parametrize("error", ["ImportError('no GPU')", "NeedsGpuError('no GPU')"])
def test_a_package_whose_import_has_failed_can_be_imported_later(tmp_path, monkeypatch, error):
    """Such a package imports the requested module, like vLLM's packages of models."""
    package = f"package_{error[:5].lower()}"
    for name, text in _PARTS.items():
        path = tmp_path / package / f"{name}.py"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text.format(package=package))
    gpu = tmp_path / f"{package}_gpu.py"
    gpu.write_text(f"from startup.imports.gpu_guard import NeedsGpuError\nraise {error}")
    monkeypatch.syspath_prepend(tmp_path)
    import_leniently([f"{package}.inner.model"])
    assert package not in sys.modules
    gpu.write_text("")
    importlib.invalidate_caches()
    assert importlib.import_module(f"{package}.inner.model").model == "a model"
