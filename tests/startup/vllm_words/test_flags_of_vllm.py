"""The table of flags for a vLLM whose facts are not recorded yet agrees with the table of all flags."""

import pytest

from startup.vllm_words.facts import FlagFact
from startup.vllm_words.flags import USUAL, Flags
from startup.words.table import find_flag
from tests.support.vllm_flags import VLLM_NAMES

_FORMER = {"--task"}


@pytest.mark.parametrize("fact", [fact for fact in USUAL if fact.name not in _FORMER], ids=lambda fact: fact.name)
def test_a_row_has_names_and_number_of_values_of_vllms_flag_and_a_clear_abbreviation(fact: FlagFact):
    flag = find_flag(fact.name).flag
    assert {*fact.names} <= {*flag.names}
    assert flag.num_values == (1 if fact.nargs is None else fact.nargs)
    prefixes = (fact.name[:length] for length in range(3, len(fact.name) + 1))
    shortest = next(prefix for prefix in prefixes if Flags().complete(prefix) == [fact.name])
    assert shortest == fact.name or [name for name in VLLM_NAMES if name.startswith(shortest)] == [fact.name]
