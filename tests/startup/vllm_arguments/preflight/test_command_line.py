"""Arguments are read as vLLM's argparse reads them. Only arguments that vLLM certainly rejects are faults."""

import json

import pytest

from startup.vllm_arguments.preflight.arguments import argument_findings, parse_value
from startup.vllm_arguments.vllm_line import VllmLine
from startup.vllm_arguments.vllm_record import VllmRecord


def _read(record: VllmRecord, *arguments: str) -> dict[str, tuple[str, ...]]:
    """Name of a flag, completed as by argparse -> its values."""
    line = VllmLine.of(arguments, record)
    assert (line.faults, line.unknown, line.others, line.model) == ([], [], [], "m")
    return {option.option: option.values for option in line.options}


@pytest.mark.parametrize(
    ("arguments", "content"),
    [
        ("-cc.a 1", {"a": 1}),
        ("-cc.a.b=x -cc.c true", {"a": {"b": "x"}, "c": True}),
        ("-cc.a+ x,y -cc.a+ z", {"a": ["x", "y", "z"]}),
        ("-cc.some_size 8k", {"some_size": 8000}),
    ],
)
def test_keys_become_an_object_at_the_end(record, arguments, content):
    given = _read(record, "m", *arguments.split(), "--port", "1")
    assert list(given) == ["--port", "-cc"]
    assert json.loads(given["-cc"][0]) == content


def test_settings_of_the_file_come_before_the_arguments(tmp_path, record):
    path = tmp_path / "settings.yml"
    path.write_text("port: 1\nenforce-eager: true\nheadless: false\napi-key: [a, b]\nmiddleware: []\n-cc: {a: 1}\n")
    path.write_text(path.read_text().replace("-cc:", "compilation-config:") + "model: m\n")
    line = VllmLine.of(["--port", "2", "--config", str(path)], record)
    assert (line.model, line.value("--port"), line.has("--headless"), line.faults) == ("m", "2", False, [])
    assert [(option.name, option.values, option.where) for option in line.options] == [
        ("--port", ("1",), "settings.yml: port"),
        ("--enforce-eager", (), "settings.yml: enforce-eager"),
        ("--api-key", ("a", "b"), "settings.yml: api-key"),
        ("--compilation-config", ('{"a": 1}',), "settings.yml: compilation-config"),
        ("--model", ("m",), "settings.yml: model"),
        ("--port", ("2",), ""),
    ]


def test_values_of_all_places(start):
    checked = start("m", "--middleware", "a.b", "--middleware", "c.d")
    assert (checked.all_values("--middleware"), checked.value("--middleware")) == (["a.b", "c.d"], "c.d")


@pytest.mark.parametrize(
    ("name", "text", "value"),
    [
        ("--dtype", "half", "half"),
        ("--port", "08", 8),
        ("--max-model-len", "auto", -1),
        ("--max-model-len", "8K", 8192),
        ("--kv-cache-memory-bytes", "None", None),
        ("--host", "", None),
        ("--gpu-memory-utilization", "1e-1", 0.1),
        ("--allowed-origins", '["*"]', ["*"]),
        ("--hf-overrides", "module.function", "module.function"),
        ("--hf-overrides", '{"a": 1}', {"a": 1}),
        ("-cc", '{"changed": 8k, "path": "8k"}', {"changed": 8000, "path": "8k"}),
        ("--moe-backend", "Deep-GEMM", "deep_gemm"),
        ("--max-lora-rank", "16", 16),
        ("--shape", "a,b", "a,b"),
        ("--mm-processor-device", "cuda", "cuda"),
    ],
)
def test_values(record, name, text, value):
    assert parse_value(next(flag for flag in record.flags if name in flag.names), text) == value


def test_before_the_flags_are_recorded_only_values_that_checks_need_are_read(start):
    arguments = "m --dtpe x --load-format=Dummy -tp 2 --hf-overrides {} --enable-lora --lora-modules a=b c=d"
    checked = start(*arguments.split(), is_first=True)
    assert list(argument_findings(checked)) == []
    assert (checked.load_format, checked.number("--tensor-parallel-size", 1), checked.value("--hf-overrides")) == (
        "dummy",
        2,
        {},
    )
    assert checked.has("--enable-lora")
    assert checked.all_values("--lora-modules") == ["a=b", "c=d"]
    (finding,) = argument_findings(start("m", "--tensor-parallel-size", "two", is_first=True))
    assert (finding.severity, "'two' is not a whole number" in finding.message) == ("error", True)
