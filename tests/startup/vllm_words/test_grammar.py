"""Words of any form are read as by argparse. `test_vllm_facts.py` compares with vLLM's own parser."""

import pytest

from startup.vllm_words.facts import VllmFacts, facts_of_flags
from tests.startup.vllm import small_parser
from tests.support.properties import given, settings, st
from tests.support.reading import read_both

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
