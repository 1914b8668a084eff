"""The record of vLLM's parser are recorded once per installation, and read by later starts."""

import argparse
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from startup.hook import Name
from startup.settings.flag import Flag
from startup.vllm_arguments.installed import InstalledVllm
from startup.vllm_arguments.preflight.arguments import name_problem
from startup.vllm_arguments.vllm_line import VllmLine
from startup.vllm_arguments.vllm_record import (
    _CONFIGS,
    _REGISTRIES,
    RecordFile,
    VllmRecord,
    default_utilization,
    flags_of_parser,
    read_plugins,
)
from tests.startup.vllm import small_parser

RECORD = VllmRecord(tuple(flags_of_parser(small_parser.build())))


def _flag(record: VllmRecord, name: str) -> Flag:
    return next(flag for flag in record.flags if name in (*flag.names, *flag.opposites))


@pytest.mark.parametrize(
    ("name", "kind", "nargs"),
    [
        ("--headless", "unknown", 0),
        ("--max-num-seqs", "int", 1),
        ("--host", "text", 1),
        ("--lora-modules", "unknown", "+"),
        ("--api-key", "text", "+"),
        ("--allowed-origins", "json", 1),
        ("--middleware", "text", 1),
        ("--default-chat-template-kwargs", "json", 1),
        ("--enable-prefix-caching", "unknown", 0),
        ("--max-model-len", "token limit", 1),
        ("--max-num-batched-tokens", "count", 1),
        ("--hf-token", "text", "?"),
        ("--hf-overrides", "json or text", 1),
        ("-cc", "object", 1),
        ("--gpu-memory-utilization", "float", 1),
        ("--moe-backend", "folded", 1),
        ("--shape", "unknown", 1),
    ],
)
def test_kind_and_number_of_values(name, kind, nargs):
    flag = _flag(RECORD, name)
    assert (flag.kind, flag.nargs) == (kind, nargs)


def test_choices_that_always_hold():
    choices = {flag.name: flag.choices for flag in RECORD.flags if flag.choices is not None}
    assert choices == {
        "--dtype": ("auto", "float16", "half"),
        "--uvicorn-log-level": ("critical", "error", "info"),
        "--moe-backend": ("auto", "deep_gemm"),
        "--max-lora-rank": (8, 16, 64),
        "--kv-role": ("producer", None),
    }


def test_names_and_opposites():
    assert _flag(RECORD, "-q").names == ("--quantization", "-q")
    assert _flag(RECORD, "--device-memory-utilization").name == "--gpu-memory-utilization"
    assert _flag(RECORD, "--enforce-eager").opposites == ("--no-enforce-eager",)
    assert _flag(RECORD, "--headless").opposites == ()
    assert _flag(RECORD, "--enable-lora").opposites == ("--no-enable-lora", "--disable-lora")
    assert (_flag(RECORD, "--host").is_optional, _flag(RECORD, "--port").is_optional) == (True, False)
    line = VllmLine.of(["m", "--disable-lora"], RECORD)
    assert (line.unknown, line.has("--enable-lora")) == ([], False)


def test_plugins_of_other_packages_are_found(tmp_path, monkeypatch):
    for name, value in (("own", "own.plugin:register"), ("vllm", "vllm.plugins.lora:register")):
        metadata = tmp_path / f"{name}-1.0.dist-info"
        metadata.mkdir()
        (metadata / "entry_points.txt").write_text(
            f"[console_scripts]\nx = y:z\n\n[vllm.general_plugins]\n{name} = {value}\n"
        )
    monkeypatch.syspath_prepend(str(tmp_path))
    record = VllmRecord(installed_plugins=read_plugins()[str(tmp_path)])
    assert [plugin.name for plugin in record.plugins] == ["own"]
    monkeypatch.setenv("VLLM_PLUGINS", "other")
    assert record.plugins == ()


@pytest.fixture
def vllm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> InstalledVllm:
    """A fake vLLM whose modules are imported: a parser, a source that it depends on, and a registry."""
    site = tmp_path / "site"
    (site / "vllm-0.32.0.dist-info").mkdir(parents=True)
    (site / "config.py").write_text("")
    (site / "cpu.py").write_text('        os.environ["VLLM_OWN"] = "spawn"')
    monkeypatch.syspath_prepend(str(site))
    monkeypatch.setenv("VLLM_CACHE_ROOT", str(tmp_path / "cache"))
    parsers = SimpleNamespace(list_registered=lambda: ["b", "a"])
    modules = {
        "vllm.entrypoints.cli.serve": {"make_arg_parser": lambda parser: parser},
        "vllm.utils.argparse_utils": {"FlexibleArgumentParser": lambda add_help: small_parser.build()},
        "vllm.config.model": {"__file__": str(site / "config.py")},
        "vllm.tool_parsers": {"ToolParserManager": parsers},
        "vllm.reasoning": {},
        "vllm.config": {**dict.fromkeys(_CONFIGS, small_parser.OtherConfig), "ModelConfig": small_parser.SmallConfig},
        "vllm.envs": {"environment_variables": VARIABLES},
        "vllm.platforms.cpu": {"__file__": str(site / "cpu.py")},
        "transformers.models.auto.configuration_auto": {},
    }
    for name, values in modules.items():
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
        vars(sys.modules[name]).update(values)
    return InstalledVllm("0.32.0", site / "vllm")


def _env_with_choices(
    env_name: str, default: Any, choices: list[str] | Callable[[], list[str]], case_sensitive: bool = True
) -> Callable[[], Any]:
    """A variable's reader, as vLLM's function of this name makes it."""
    return lambda: (env_name, default, choices, case_sensitive)


VARIABLES: dict[str, Any] = {
    "VLLM_COUNT": lambda: int(os.getenv("VLLM_COUNT", "0")),
    "VLLM_NAME": lambda: os.getenv("VLLM_NAME"),
    "VLLM_BACKEND": _env_with_choices("VLLM_BACKEND", None, ["NCCL", "shm"]),
    "VLLM_FOLDED": _env_with_choices("VLLM_FOLDED", "A4", ["A4", "b-8"], case_sensitive=False),
    "VLLM_LABELS": _env_with_choices("VLLM_LABELS", [], lambda: ["a", "b"]),
}
"""Readers of variables, as in `vllm.envs`."""


def _record(vllm: InstalledVllm) -> VllmRecord:
    kept = RecordFile(vllm)
    assert kept.read() == VllmRecord()
    kept.update()
    return kept.read()


def test_what_vllm_has_is_recorded_and_read_again(vllm):
    record = _record(vllm)
    without_limits = [flag._replace(limits=()) for flag in record.flags]
    assert json.loads(json.dumps(without_limits)) == json.loads(json.dumps(RECORD.flags))
    limits = {flag.name: flag.limits for flag in record.flags if flag.limits}
    assert limits == {"--max-num-seqs": (("ge", 1),)}, "code of the class changes the others"
    assert record.names["--tool-call-parser"] == ("a", "b")
    assert [(flag.name, flag.kind, flag.nargs, flag.choices) for flag in record.variables] == [
        ("VLLM_BACKEND", "text", 1, ("NCCL", "shm")),
        ("VLLM_FOLDED", "lower", 1, ("a4", "b-8")),
        ("VLLM_LABELS", "text", "*", ("a", "b")),
    ]
    assert record.set_by_vllm == ("VLLM_OWN",)


@pytest.mark.parametrize("changed", ["path", "variable"])
def test_other_plugins_have_a_record_of_their_own(vllm, tmp_path, monkeypatch, changed):
    _record(vllm)
    if changed == "path":
        metadata = tmp_path / "plugins" / "own-1.0.dist-info"
        metadata.mkdir(parents=True)
        (metadata / "entry_points.txt").write_text("[vllm.general_plugins]\nown = own.plugin:register\n")
        monkeypatch.syspath_prepend(str(tmp_path / "plugins"))
    else:
        monkeypatch.setenv("VLLM_PLUGINS", "own")
    record = RecordFile(vllm).read()
    assert (record.flags, len(record.installed_plugins)) == ((), changed == "path")


@pytest.mark.parametrize("content", ["", "{}", '{"stamps": "", "files": {}, "value": [1, {}]}', "[1]"])
def test_a_damaged_record_is_replaced(vllm, tmp_path, content):
    first = _record(vllm)
    (path,) = (tmp_path / "cache" / "vllm_cli" / "vllm-facts").iterdir()
    path.write_text(content)
    assert _record(vllm) == first


def test_a_vllm_that_was_not_imported_or_has_another_parser_is_not_recorded(vllm, monkeypatch):
    monkeypatch.setitem(vars(sys.modules["vllm.utils.argparse_utils"]), "FlexibleArgumentParser", None)
    assert _record(vllm) == VllmRecord()
    monkeypatch.delitem(sys.modules, "vllm.entrypoints.cli.serve")
    assert _record(vllm) == VllmRecord()


@pytest.mark.parametrize(
    "name",
    [
        "vllm.config.model",
        "vllm.tool_parsers",
        "vllm.reasoning.new_parser",
        "vllm.model_executor.models.registry",
        "vllm.model_executor.layers.quantization",
        "transformers.models.auto.auto_mappings",
        "vllm.envs",
    ],
)
def test_a_record_is_valid_while_each_module_that_it_was_read_from_is_the_same(vllm, name, tmp_path, monkeypatch):
    """`git pull`, or a file mounted over vLLM's file, may bring other names with the same version."""
    file = tmp_path / "module.py"
    file.write_text("")
    monkeypatch.setitem(sys.modules, name, sys.modules.get(name) or ModuleType(name))
    monkeypatch.setattr(sys.modules[name], "__file__", str(file), raising=False)
    _record(vllm)
    assert RecordFile(vllm).read().flags
    assert RecordFile(vllm._replace(version="0.33.0")).read() == VllmRecord()
    file.write_text("names = ['new']")
    assert RecordFile(vllm).read() == VllmRecord()


@pytest.mark.parametrize(
    ("days", "settings", "is_renewed"),
    [
        (0, {}, False),
        (0.5, {}, False),
        (2, {}, True),
        (31, {}, True),
        (0, {"is_doubted": True}, True),  # vLLM has accepted a start against the record
        (0, {"imports_all": True}, True),
    ],
    ids=str,
)
def test_an_old_or_doubted_record_is_renewed(vllm, days, settings, is_renewed, tmp_path, monkeypatch):
    _record(vllm)
    (path,) = (tmp_path / "cache" / "vllm_cli" / "vllm-facts").iterdir()
    os.utime(path, (path.stat().st_mtime - days * 86400,) * 2)
    assert bool(RecordFile(vllm).read().flags) == (days < 30)
    monkeypatch.setattr(sys.modules["vllm.tool_parsers"], "ToolParserManager", SimpleNamespace(list_registered=["new"]))
    RecordFile(vllm).update(**settings)
    assert RecordFile(vllm).read().names["--tool-call-parser"] == (("new",) if is_renewed else ("a", "b"))


def test_the_default_share_of_a_gpu_is_that_of_the_recorded_vllm():
    def record(default: float) -> VllmRecord:
        parser = argparse.ArgumentParser()
        parser.add_argument("--gpu-memory-utilization", type=float, default=default)
        return VllmRecord(tuple(flags_of_parser(parser)))

    assert [default_utilization(each) for each in (VllmRecord(), record(0.92), record(0.85))] == [0.92, 0.92, 0.85]


def test_a_name_that_the_registry_has_now_is_registered_whatever_the_record_says(tmp_path, monkeypatch):
    """The registry's file may be a changed one with the same time and size."""
    (tmp_path / "toy_registry.py").write_text("NAMES = {'new_parser': 1}\nclass Backend(Enum):\n    NEW = 1\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    registry = Name("toy_registry", "NAMES")
    monkeypatch.setitem(_REGISTRIES, "--tool-call-parser", registry)
    record = VllmRecord(names={"--tool-call-parser": ("old_parser",)})
    problems = {
        name: name_problem(record, "--tool-call-parser", name, name) for name in ("new_parser", "NEW", "parser")
    }
    assert problems == {
        "new_parser": None,
        "NEW": None,
        "parser": "this vLLM has no --tool-call-parser 'parser' (did you mean 'old_parser'?)",
    }
