"""Words are read as vLLM's argparse reads them. Only words that vLLM certainly rejects are faults."""

import json
from typing import Any

import pytest

from startup.ground.keyed_values import parse_size
from startup.session.preflight.report import PreflightReport
from startup.vllm_words.command_line import CommandLine
from startup.vllm_words.facts import VllmFacts
from startup.vllm_words.preflight.arguments import argument_findings, describe_unknown, rule_findings
from startup.vllm_words.preflight.flag_values import FlagValueError, parse_value, range_problem
from tests.startup.vllm_words.preflight.conftest import CheckStart


def _read(facts: VllmFacts, *words: str) -> dict[str, tuple[str, ...]]:
    """Name of a flag, completed as by argparse -> its values."""
    line = CommandLine.of(words, facts)
    assert (line.problems, line.unknown, line.unexpected, line.model) == ((), (), (), "m")
    return {flag.option: flag.values for flag in line.flags}


@pytest.mark.parametrize(
    ("words", "given"),
    [
        ("m --max_model_len 5", {"--max-model-len": ("5",)}),
        ("m --chat_template=a_b", {"--chat-template": ("a_b",)}),
        ("--port 1 --headless m", {"--port": ("1",), "--headless": ()}),
        ("m --max-model 8k", {"--max-model-len": ("8k",)}),
        ("m -tp 2 -qawq", {"-tp": ("2",), "-q": ("awq",)}),
        ("m --device-memory 0.5", {"--device-memory-utilization": ("0.5",)}),
    ],
)
def test_flags(facts, words, given):
    assert _read(facts, *words.split()) == given


@pytest.mark.parametrize(
    ("words", "content"),
    [
        ("-cc.a 1", {"a": 1}),
        ("-cc.a.b=x -cc.c true", {"a": {"b": "x"}, "c": True}),
        ("-cc.a+ x,y -cc.a+ z", {"a": ["x", "y", "z"]}),
        ("-cc.some_size 8k", {"some_size": 8000}),
    ],
)
def test_keys_become_an_object_at_the_end(facts, words, content):
    given = _read(facts, "m", *words.split(), "--port", "1")
    assert list(given) == ["--port", "-cc"]
    assert json.loads(given["-cc"][0]) == content


def test_a_setting_has_the_values_of_variables_and_is_named_by_its_place(tmp_path, monkeypatch, start):
    """Each of these flags has a type that the preflight checks."""
    monkeypatch.setenv("LEN", "16")
    path = tmp_path / "serve.yaml"
    path.write_text("max-num-seqs: ${LEN}\nport: ${NOT_SET:-3}\nenforce-eager: ${NOT_SET:-true}\n")
    assert [*argument_findings(start("m", "--config", str(path)))] == []
    path.write_text("port: 80a\nmax_num_seqs: 0\nmax-model-length: 4k\nlogits-processors: []\ntensor: 2\n")
    assert [finding.message for finding in argument_findings(start("m", "--config", str(path)))] == [
        "serve.yaml: max-model-length: vLLM has no flag --max-model-length (did you mean '--max-model-len'?)",
        "serve.yaml: port '80a' is not a whole number",
        "serve.yaml: max_num_seqs must be 1 or more, got 0",
    ]


def test_settings_of_the_file_come_before_the_words(tmp_path, facts):
    path = tmp_path / "settings.yml"
    path.write_text("port: 1\nenforce-eager: true\nheadless: false\napi-key: [a, b]\nmiddleware: []\n-cc: {a: 1}\n")
    path.write_text(path.read_text().replace("-cc:", "compilation-config:") + "model: m\n")
    line = CommandLine.of(["--port", "2", "--config", str(path)], facts)
    assert (line.model, line.value("--port"), line.has("--headless"), line.problems) == ("m", "2", False, ())
    assert [(flag.fact.name, flag.values, flag.where) for flag in line.flags] == [
        ("--port", ("1",), "settings.yml: port"),
        ("--enforce-eager", (), "settings.yml: enforce-eager"),
        ("--api-key", ("a", "b"), "settings.yml: api-key"),
        ("--compilation-config", ('{"a": 1}',), "settings.yml: compilation-config"),
        ("--model", ("m",), "settings.yml: model"),
        ("--port", ("2",), ""),
    ]


@pytest.mark.parametrize(
    ("content", "message"),
    [("- a", "must be a mapping"), ("a: [", "is not YAML"), ("port: 1", "no model"), ("", "is empty")],
)
def test_a_faulty_file_is_an_error(tmp_path, content, message):
    path = tmp_path / "settings.yaml"
    path.write_text(content)
    (problem,) = CommandLine.of(["--config", str(path)]).problems
    assert message in problem


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("m --config", "needs the path"),
        ("m --config missing.yaml", "cannot be read"),
        ("m --config settings.json", "yaml or .yml"),
        ("m --config settings.json --config b.yaml", "more than once"),
        ("m --cc.a", "--cc.a needs a value"),
        ("--served-model-name a", "needs MODEL"),
    ],
)
def test_words_that_end_vllm(words, message):
    assert message in CommandLine.of(words.split()).problems[0]


@pytest.mark.parametrize(
    ("text", "number"), [("8k", 8000), ("8K", 8192), ("1.5k", 1500), (" 12 ", 12), ("1_000", 1000), ("2g", 2 * 10**9)]
)
def test_sizes(text, number):
    assert parse_size(text) == number


@pytest.mark.parametrize("text", ["1.5K", "8kb", "", "k", "0x10"])
def test_no_sizes(text):
    with pytest.raises(ValueError, match=r".*"):
        parse_size(text)


def test_values_of_all_places(start):
    checked = start("m", "--middleware", "a.b", "--middleware", "c.d")
    assert (checked.all_values("--middleware"), checked.value("--middleware")) == (["a.b", "c.d"], "c.d")


def test_unknown_flags_are_all_named(facts):
    line = CommandLine.of(["m", "--dtpe", "half", "--hedless=1", "--dtype", "half"], facts)
    assert list(describe_unknown(line)) == [
        "vLLM has no flag --dtpe (did you mean '--dtype'?)",
        "vLLM has no flag --hedless (did you mean '--headless'?)",
    ]


@pytest.mark.parametrize("word", [" ", "\\", "", "\n", " --port"], ids=repr)
def test_what_a_backslash_leaves_behind_model_is_named(facts, word):
    (text,) = describe_unknown(CommandLine.of(["m", word], facts))
    assert text.startswith(f"unexpected word {word!r}: remove the empty word, or the characters after a `\\`")


def test_a_second_model_is_named(facts):
    line = CommandLine.of(["m", "n"], facts)
    assert list(describe_unknown(line)) == ["unexpected word 'n': MODEL is one word, given first"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("m --tensor-parallel-size", "--tensor-parallel-size needs one argument"),
        ("m --port --headless", "--port needs one argument"),
        ("m --port -x", "--port needs one argument"),
        ("m --served-model-name", "--served-model-name needs at least one argument"),
        ("m --headless=1", "--headless ignored explicit argument '1'"),
        ("m --max-num 1", "--max-num may stand for --max-num-seqs, --max-num-batched-tokens: write the whole name"),
    ],
)
def test_words_that_argparse_rejects(facts, words, message):
    assert CommandLine.of(words.split(), facts).problems == (message,)


def _parse(facts: VllmFacts, name: str, text: str) -> object:
    return parse_value(next(flag for flag in facts.flags if name in flag.names), text)


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
        ("-cc", '{"mode": 8k, "level": "8k"}', {"mode": 8000, "level": "8k"}),
        ("--moe-backend", "Deep-GEMM", "deep_gemm"),
        ("--max-lora-rank", "16", 16),
        ("--shape", "a,b", "a,b"),
        ("--mm-processor-device", "cuda", "cuda"),
    ],
)
def test_values(facts, name, text, value):
    assert _parse(facts, name, text) == value


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("--dtype", "hlf", r"--dtype 'hlf' is not one of auto, float16, half \(did you mean 'half'\?\)"),
        ("--port", "80a", "--port '80a' is not a whole number"),
        ("--max-model-len", "8kb", "--max-model-len '8kb' is neither auto nor a whole number"),
        ("--gpu-memory-utilization", "much", "is not a number"),
        ("--allowed-origins", "*", "is not JSON: Expecting value"),
        ("--hf-overrides", "{1}", "is not JSON"),
        ("-cc", "[1]", "is not a JSON object"),
        ("-cc", '{"modus": 1}', r"--compilation-config has no field 'modus' \(did you mean 'mode'\?\)"),
        ("-cc", '{"backend": "x"}', "--compilation-config: backend 'x' is not one of inductor, eager"),
        ("--max-lora-rank", "9", "is not one of 8, 16, 64"),
    ],
)
def test_values_that_vllm_rejects(facts, name, text, message):
    with pytest.raises(FlagValueError, match=message):
        _parse(facts, name, text)


@pytest.mark.parametrize(
    ("name", "value", "problem"),
    [
        ("--max-num-seqs", 1, None),
        ("--max-num-seqs", 0, "--max-num-seqs must be 1 or more, got 0"),
        ("--gpu-memory-utilization", 1.0, None),
        ("--gpu-memory-utilization", 90.0, "--gpu-memory-utilization must be 1 or less, got 90.0"),
        ("--gpu-memory-utilization", 0.0, "--gpu-memory-utilization must be more than 0, got 0.0"),
        ("--gpu-memory-utilization", None, None),
    ],
)
def test_ranges(facts, name, value, problem):
    assert range_problem(next(flag for flag in facts.flags if name in flag.names), value) == problem


def _found(start: CheckStart, words: str, **options: Any) -> list[tuple[str, str, str]]:
    return [finding[:3] for finding in argument_findings(start(*words.split(), **options))]


@pytest.mark.parametrize("words", ["m --new-flag 1", "m --dtype new"])
def test_what_a_plugin_may_know_is_no_error(start, words):
    assert all(severity == "warning" for _, severity, _ in _found(start, words, has_plugin=True))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--swap_space 4", "vLLM has no flag --swap-space (removed: leave it out, or give --kv-offloading-size"),
        ("--rope-scaling {}", """vLLM has no flag --rope-scaling (removed: give --hf-overrides '{"rope_parameters"""),
        ("--device cpu", "vLLM has no flag --device (removed: leave it out, vLLM runs on the device"),
        ("-cc 3", "'3' is not a JSON object: write a level as -O3 or leave it out"),
    ],
)
def test_a_former_flag_and_a_former_value_name_what_replaces_them(start, words, message):
    (severity, text), *_ = [(severity, text) for _, severity, text in _found(start, f"m {words}")]
    assert severity == "error"
    assert message in text


def test_all_faults_are_told_at_once(start):
    found = argument_findings(
        start(*["m", "--dtpe", "half", "--dtype", "hlf", "--port", "x", "--max-num-seqs", "many"])
    )
    err = PreflightReport(tuple(found), 0).as_error()
    assert str(err).splitlines()[0] == "4 faults:"


@pytest.mark.parametrize(
    ("words", "options", "severities"),
    [
        ("--max-num-seqs 0", {}, ["error"]),
        ("--max-num-seqs 0", {"version": "0.99.0"}, ["warning"]),
        ("--max-num-seqs 0 --max-num-seqs 1", {}, ["warning"]),
    ],
)
def test_a_number_outside_of_its_range(start, words, options, severities):
    assert [severity for _, severity, _ in _found(start, f"m {words}", **options)] == severities


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--enable-auto-tool-choice", "--enable-auto-tool-choice needs --tool-call-parser"),
        ("--enable-log-outputs", "--enable-log-outputs needs --enable-log-requests"),
        ("--max-num-batched-tokens 1 --max-num-seqs 2", "--max-num-batched-tokens 1 must be at least --max-num-seqs 2"),
        ("--headless --api-server-count 2", "--headless starts no API server: remove --api-server-count"),
        ('--kv-transfer-config {"kv_connector":"Nixl"}', "no --kv-transfer-config kv_connector 'Nixl'"),
    ],
)
def test_what_flags_ask_of_each_other(start, words, message):
    (found,) = rule_findings(start("m", *words.split()))
    assert (found.severity, message in found.message) == ("error", True)
    (found,) = rule_findings(start("m", *words.split(), version="0.99.0"))
    assert found.severity == "warning"
    assert list(rule_findings(start("m", *words.split(), is_first=True))) == []


@pytest.mark.parametrize(
    "words",
    [
        "--enable-auto-tool-choice --tool-call-parser hermes",
        "--enable-log-outputs --enable-log-requests",
        "--max-num-batched-tokens 1",
        "--headless --api-server-count 0",
        '--kv-transfer-config {"kv_connector":"Own","kv_connector_module_path":"own.module"}',
    ],
)
def test_flags_that_fit_each_other(start, words):
    assert list(rule_findings(start("m", *words.split()))) == []


def test_a_config_file_that_vllm_would_not_read_is_a_warning(start):
    ((_, severity, text),) = _found(start, "m --config=settings.yaml")
    assert severity == "warning"
    assert "write `--config settings.yaml`" in text


@pytest.mark.parametrize(
    ("words", "severity", "message"),
    [
        (
            "--enable-auto-tool-choice --tool-call-parser hermse",
            "error",
            "no --tool-call-parser 'hermse' (did you mean 'hermes'?)",
        ),
        ("--tool-call-parser hermse", "warning", "no --tool-call-parser 'hermse'"),
        ("--reasoning-parser qwen", "error", "no --reasoning-parser 'qwen' (did you mean 'qwen3'?)"),
        ("--load-format Dumy", "error", "no --load-format 'Dumy' (did you mean 'dummy'?)"),
        ("--attention-backend flash", "error", "no --attention-backend 'flash'"),
        ("--config-format json", "error", "no --config-format 'json'"),
        (
            "--distributed-executor-backend rey",
            "warning",
            "-executor-backend 'rey' (did you mean 'ray'",
        ),
    ],
)
def test_a_name_that_is_not_registered(start, words, severity, message):
    ((_, found, text),) = _found(start, f"m {words}")
    assert (found, message in text) == (severity, True)
    assert [severity for _, severity, _ in _found(start, f"m {words}", has_plugin=True)] == ["warning"]
    assert _found(start, f"m {words}", is_first=True) == []


@pytest.mark.parametrize(
    "words",
    [
        "--reasoning-parser mine --reasoning-parser-plugin mine.py",
        "--load-format SafeTensors",
        "--attention-backend auto",
        "--config-format auto",
        "--distributed-executor-backend own.module.Executor",
        "--attention-backend torch_sdpa",
        "--enable-auto-tool-choice --tool-call-parser hermes",
    ],
)
def test_a_registered_name(start, words):
    assert _found(start, f"m {words}") == []


def test_before_the_flags_are_recorded_only_values_that_checks_need_are_read(start):
    words = "m --dtpe x --load-format=Dummy -tp 2 --hf-overrides {} --enable-lora --lora-modules a=b c=d"
    checked = start(*words.split(), is_first=True)
    assert list(argument_findings(checked)) == []
    assert (checked.load_format, checked.number("--tensor-parallel-size", 1), checked.value("--hf-overrides")) == (
        "dummy", 2, {},
    )  # fmt: skip
    assert checked.has("--enable-lora")
    assert checked.all_values("--lora-modules") == ["a=b", "c=d"]
    ((_, severity, text),) = _found(start, "m --tensor-parallel-size two", is_first=True)
    assert (severity, "'two' is not a whole number" in text) == ("error", True)


@pytest.mark.parametrize(
    "flag",
    ["--model", "--tokenizer", "--served-model-name", "--config-format", "--hf-overrides", "--logits-processors",
     "--device-ids", "--data-parallel-backend", "--optimization-level"],
)  # fmt: skip
@pytest.mark.parametrize("form", ["two words", "one word"])
def test_a_flag_that_vllm_cannot_take_empty(flag, form, start):
    words = [flag, ""] if form == "two words" else [f"{flag}="]
    checked = start(*([] if flag == "--model" else ["m"]), *words)
    found = [(each.severity, each.check, each.message.partition(":")[0]) for each in argument_findings(checked)]
    assert ("error", "usage", f"{flag} is empty") in found
    assert [each for each in found if each[0] == "error"] == [("error", "usage", f"{flag} is empty")]


@pytest.mark.parametrize(
    "flag", ["--host", "--uds", "--quantization", "--reasoning-parser", "--download-dir", "--ssl-keyfile", "--api-key"]
)
def test_a_flag_that_vllm_takes_empty(flag, start):
    assert [each for each in argument_findings(start("m", flag, "")) if "is empty" in each.message] == []


def test_model_before_an_empty_flag_is_the_model(start):
    assert [each for each in argument_findings(start("m", "--model", "")) if "is empty" in each.message] == []
    assert list(argument_findings(start("m", "--tokenizer", "", "--tokenizer", "t"))) == []
