"""The table of flags for a vLLM whose facts are not recorded yet agrees with the table of all flags."""

import pytest

from startup.settings.flag import Flag
from startup.vllm_words.command_line import CommandLine
from startup.vllm_words.facts import VllmFacts
from startup.vllm_words.flags import USUAL, Flags, flags_that_change
from startup.words.table import FLAGS, find_flag
from tests.support.vllm_flags import VLLM_NAMES, is_own

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
