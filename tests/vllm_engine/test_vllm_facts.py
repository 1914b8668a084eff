"""The facts that are read from vLLM's sources are those of the imported vLLM: every flag and choice."""

from pathlib import Path
from typing import Any, Final

import pytest

from startup.vllm.facts.installed_facts import read_facts_in
from startup.vllm.facts.vllm_facts import FlagFact, VllmFacts
from startup.vllm.preflight.flag_values import FlagValueError, parse_value
from tests.support.peer_vllm import ENVIRONMENT, ask_vllm

pytestmark = pytest.mark.versions

VALUES: Final = (
    "1", "0", "-1", "1.5", "8k", "8K", "1.5k", "1.5K", "auto", "AUTO", "x", "", "None", "{}", '{"a": 1}', "[1]", "[]",
    "true", "1_0", " 1", "nan", "1e3", '{"a"', "80g", "-2", "null", '"text"', "a=b", "Half", "half", "deep-gemm",
    "tcp://10.0.0.1:80",
)  # fmt: skip
_UNKNOWN_CHOICES: Final = ("--mm-processor-device", "--collect-detailed-traces")
"""Flags whose choices depend on the machine, or are computed."""


@pytest.fixture(scope="module")
def facts() -> VllmFacts:
    (site,) = ENVIRONMENT.glob("lib/python*/site-packages")
    return read_facts_in(site)


@pytest.fixture(scope="module")
def real(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    script = Path(__file__).parent / "preflight" / "vllm_facts.py"
    found: dict[str, Any] = ask_vllm(script, {"values": VALUES}, tmp_path_factory.mktemp("facts"), timeout_s=1200)
    return found


def _options(flag: FlagFact) -> set[str]:
    return {*flag.names, *flag.opposites}


def _by_options(facts: VllmFacts) -> dict[frozenset[str], FlagFact]:
    return {frozenset(_options(flag)): flag for flag in facts.flags}


def test_flags_and_options(facts, real):
    assert facts.has_all_flags
    assert set(_by_options(facts)) == {frozenset(flag["options"]) for flag in real["flags"]}


def test_numbers_of_values(facts, real):
    ours = {options: flag.nargs for options, flag in _by_options(facts).items()}
    assert ours == {frozenset(flag["options"]): flag["nargs"] for flag in real["flags"]}


def test_choices(facts, real):
    flags = _by_options(facts)
    for flag in real["flags"]:
        ours = flags[frozenset(flag["options"])]
        if ours.name not in _UNKNOWN_CHOICES:
            assert (None if ours.choices is None else sorted(map(str, ours.choices))) == flag["choices"], ours.name


def test_accepted_values(facts, real):
    """Nothing that vLLM accepts is rejected; of plain values nothing else is accepted."""
    flags = _by_options(facts)
    for flag in real["flags"]:
        ours = flags[frozenset(flag["options"])]
        if ours.nargs == 0:
            continue
        accepted = [value for value in VALUES if _accepts(ours, value)]
        assert set(flag["accepted"]) <= set(accepted), ours.name
        if ours.kind not in ("unknown", "object") and ours.name not in _UNKNOWN_CHOICES:
            assert accepted == flag["accepted"], ours.name


def test_few_flags_are_not_understood(facts):
    assert len([flag.name for flag in facts.flags if flag.kind == "unknown" and flag.nargs != 0]) <= 8


def _accepts(flag: FlagFact, value: str) -> bool:
    try:
        parse_value(flag, value)
    except FlagValueError:
        return False
    return True
