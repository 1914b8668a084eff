"""Words are read as by argparse, JSON values as by pydantic. `test_vllm_facts.py` asks vLLM's own parser."""

import json

import pytest
from pydantic import TypeAdapter, ValidationError

from startup.settings.flag import Flag
from startup.vllm_words.command_line import CommandLine
from startup.vllm_words.facts import VllmFacts, facts_of_flags
from startup.vllm_words.flags import USUAL, Flags, flags_that_change
from startup.vllm_words.json_shape import shape_of, shape_problem
from startup.words.table import FLAGS, find_flag
from tests.startup.vllm import small_parser
from tests.startup.vllm.small_parser import SmallConfig
from tests.support.properties import given, settings, st
from tests.support.reading import read_both
from tests.support.vllm_flags import VLLM_NAMES, is_own
from tests.vllm_engine.test_vllm_facts import JSON_VALUES

_PARSER = small_parser.build()
_FACTS = VllmFacts(tuple(facts_of_flags(_PARSER)))
_OPTIONS = [
    "--tensor-parallel-size", "-tp", "--quantization", "-q", "--dtype", "--port", "--host", "--api-key", "--hf-token",
    "--headless", "--enforce-eager", "--no-enforce-eager", "--disable-lora", "--max-num-seqs", "--max-model-len",
    "--served-model-name", "--gpu-memory-utilization", "--allowed-origins", "--moe-backend", "--unknown", "-x",
]  # fmt: skip
_VALUES = st.sampled_from(["1", "-1", "x", "{}", "None", "", "a b", "-a b", "-", "-x", "half", "auto", "deep-gemm"])


@st.composite
def _flag(draw: st.DrawFn) -> list[str]:
    """The words of a flag with values. It may be abbreviated, or have its value in the same word."""
    option = draw(st.sampled_from(_OPTIONS))
    name = option[: draw(st.integers(3 if option.startswith("--") else 2, len(option)))]
    values = draw(st.lists(_VALUES, max_size=2))
    match draw(st.sampled_from(["apart", "apart", "=", ""])):
        case "=" if values:
            return [f"{name}={values[0]}", *values[1:]]
        case "" if values and len(name) == 2:
            return [name + values[0], *values[1:]]
    return [name, *values]


@pytest.mark.thorough
@settings(max_examples=150)
@given(st.lists(_flag(), max_size=4), st.booleans())
def test_words_are_read_as_argparse_reads_them(parts, begins_with_model):
    flags = [word for part in parts for word in part]
    words = ["m", *flags] if begins_with_model else [*flags, "--", "m"]
    reading = read_both(words, _FACTS, _PARSER.parse_args)
    assert reading.differences == []
    assert bool(reading.faults) != reading.is_accepted


_SHAPE = shape_of(SmallConfig)


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        ({"foo": 1}, "-cc has no field 'foo'"),
        ({"own": "x"}, "-cc has no field 'own'"),
        ({"passes": {"fus": 1}}, "-cc has no field 'passes.fus' (did you mean 'fuse'?)"),
        ({"made": {"fus": 1}}, "-cc has no field 'made.fus' (did you mean 'fuse'?)"),
        ({"named": "3"}, "-cc: named '3' is not one of NONE, FULL_GRAPH, auto"),
        ({"named": 3}, "-cc: named 3 is not one of NONE, FULL_GRAPH, auto"),
        ({"numbered": "full"}, "-cc: numbered 'full' is not one of 0, 2"),
        ({"attention": "flash"}, "-cc: attention 'flash' is not one of FLASH_ATTN, SDPA, auto"),
        ({"kernel": "deepgemm"}, "-cc: kernel 'deepgemm' is not one of auto, deep_gemm (did you mean 'deep_gemm'?)"),
        ({"mode": 4}, "-cc: mode must be 3 or less, got 4"),
        ({"names": ["a", 1]}, "-cc: names.1 1 is not a text"),
        ({"passes": {"sizes": [1, "x"]}}, "-cc: passes.sizes.1 'x' is not a whole number"),
        ({"passes": {"fuse": "maybe"}}, "-cc: passes.fuse 'maybe' is not true or false"),
        ({"passes": []}, "-cc: passes [] is not a JSON object"),
        ({"per_kind": {"a": "x"}}, "-cc: per_kind.a 'x' is not a number"),
        ({"max_num_seqs": None}, "-cc: max_num_seqs None is not a whole number"),
    ],
    ids=str,
)
def test_a_value_that_the_class_rejects(content, problem):
    assert (shape_problem(_SHAPE, content, "-cc") or "").startswith(problem)


def _accepted(content: object) -> bool:
    try:
        TypeAdapter(SmallConfig).validate_json(json.dumps(content))
    except (KeyError, ValidationError):
        return False
    return True


@pytest.mark.parametrize("name", _SHAPE.fields)
def test_no_value_that_the_class_accepts_is_rejected(name):
    texts = ("AUTO", "Full_Graph", "flash_attn", "DEEP-GEMM", "a.b.FlashAttention", "inductor", "a", *JSON_VALUES)
    nested = [{key: value} for key in ("fuse", "sizes", "a") for value in (*texts, [1, "auto"])]
    accepted = [value for value in (*texts, *nested) if _accepted({name: value})]
    assert [value for value in accepted if shape_problem(_SHAPE, {name: value}, "-cc")] == []
    assert accepted != []


_FORMER = {"--task"}


@pytest.mark.parametrize("fact", [fact for fact in USUAL if fact.name not in _FORMER], ids=lambda fact: fact.name)
def test_a_row_has_names_and_number_of_values_of_vllms_flag_and_a_clear_abbreviation(fact: Flag):
    flag = find_flag(fact.name).flag
    assert {*fact.names} <= {*flag.names}
    assert flag.nargs == fact.nargs
    prefixes = (fact.name[:length] for length in range(3, len(fact.name) + 1))
    shortest = next(prefix for prefix in prefixes if Flags().complete(prefix) == [fact.name])
    assert shortest == fact.name or [name for name in VLLM_NAMES if name.startswith(shortest)] == [fact.name]


_VLLMS = [flag for flag in FLAGS if not is_own(flag)]
_ALL = tuple(Flag(flag.names, nargs=flag.nargs) for flag in _VLLMS)


@pytest.mark.parametrize("recorded", [(), _ALL], ids=["first", "recorded"])
def test_each_name_of_a_flag_decides_alike_about_the_port(recorded):
    """An exact name is no abbreviation. Otherwise the port would be unknown until vLLM is imported."""
    for flag in _VLLMS:
        value = [] if flag.nargs == 0 else ["7"]
        spelled = [[name, *value] for name in flag.names] + [[f"{name}=7"] for name in flag.names if value]
        lines = (CommandLine.of(["m", *words], VllmFacts(recorded)) for words in spelled)
        port = 7 if flag.name == "--port" else 8000
        assert {(line.listens, line.port) for line in lines} == {(flag.name not in flags_that_change("no port"), port)}
