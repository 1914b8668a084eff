"""argparse reads the words with the flags of the installed vLLM; all faults are told at once."""

import pytest

from startup.vllm.facts.vllm_facts import VllmFacts
from startup.vllm.preflight.arguments import describe_unknown, read_arguments
from startup.vllm.preflight.flag_values import FlagValueError, parse_value, range_problem


def _given(facts: VllmFacts, words: str) -> dict[str, tuple[str, ...]]:
    arguments = read_arguments(words.split(), facts)
    assert (arguments.problems, arguments.unknown) == ([], [])
    return {given.fact.name: given.values for given in arguments.given}


@pytest.mark.parametrize(
    ("words", "given"),
    [
        ("m --dtype half", {"--dtype": ("half",)}),
        ("m --dtyp=half", {"--dtype": ("half",)}),
        ("m --max-model 8k", {"--max-model-len": ("8k",)}),
        ("m --max_model_len 8k", {"--max-model-len": ("8k",)}),
        ("m -tp 2 -q awq", {"--tensor-parallel-size": ("2",), "--quantization": ("awq",)}),
        ("m --served-model-name a b", {"--served-model-name": ("a", "b")}),
        ("m --api-key a b", {"--api-key": ("a", "b")}),
        ("m --hf-token", {"--hf-token": ()}),
        ("m --headless", {"--headless": ()}),
        ("m --device-memory 0.5", {"--gpu-memory-utilization": ("0.5",)}),
    ],
)
def test_flags(facts, words, given):
    assert _given(facts, words) == given


def test_model_and_switches(facts):
    arguments = read_arguments(["--enable-prefix-caching", "--no-enable-prefix-caching", "m"], facts)
    assert arguments.model == "m"
    assert not arguments.has("--enable-prefix-caching")
    assert read_arguments(["m", "--enable-prefix"], facts).has("--enable-prefix-caching")


def test_values_of_all_places(facts):
    arguments = read_arguments(["m", "--middleware", "a.b", "--middleware", "c.d"], facts)
    assert arguments.all_values("--middleware") == ["a.b", "c.d"]
    assert arguments.value("--middleware") == "c.d"


def test_unknown_flags_are_all_named(facts):
    arguments = read_arguments(["m", "--dtpe", "half", "--hedless=1", "--dtype", "half"], facts)
    assert list(describe_unknown(arguments.unknown, facts)) == [
        "vLLM has no flag --dtpe (did you mean '--dtype'?)",
        "vLLM has no flag --hedless (did you mean '--headless'?)",
    ]


def test_a_second_model_is_named(facts):
    arguments = read_arguments(["m", "n"], facts)
    assert list(describe_unknown(arguments.unknown, facts)) == ["unexpected word 'n': MODEL is one word, given first"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("m --tensor-parallel-size", "--tensor-parallel-size needs one argument"),
        ("m --served-model-name", "--served-model-name needs at least one argument"),
        ("m --headless=1", "--headless ignored explicit argument '1'"),
        ("m --max-num 1", "--max-num may stand for --max-num-seqs, --max-num-batched-tokens: write the whole name"),
    ],
)
def test_words_that_argparse_rejects(facts, words, message):
    assert read_arguments(words.split(), facts).problems == [message]


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
        ("-cc", '{"mode": 8k}', {"mode": 8000}),
        ("--moe-backend", "Deep-GEMM", "deep_gemm"),
        ("--max-lora-rank", "16", 16),
        ("--device-ids", "a,b", "a,b"),
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
        ("-cc", '{"mod": 1}', r"--compilation-config has no field 'mod' \(did you mean 'mode'\?\)"),
        ("--max-lora-rank", "9", "is not one of 8, 16, 64"),
    ],
)
def test_values_that_vllm_rejects(facts, name, text, message):
    with pytest.raises(FlagValueError, match=message):
        _parse(facts, name, text)


@pytest.mark.parametrize(
    ("name", "value", "problem"),
    [
        ("--gpu-memory-utilization", 0.0, "--gpu-memory-utilization must be more than 0, got 0.0"),
        ("--gpu-memory-utilization", 1.1, "--gpu-memory-utilization must be 1 or less, got 1.1"),
        ("--gpu-memory-utilization", 1.0, None),
        ("--max-num-seqs", 0, "--max-num-seqs must be 1 or more, got 0"),
        ("--max-model-len", -1, None),
        ("--port", -1, None),
    ],
)
def test_ranges(facts, name, value, problem):
    assert range_problem(next(flag for flag in facts.flags if name in flag.names), value) == problem
