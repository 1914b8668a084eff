"""OpenMP's variables for CPUs are parsed."""

import pytest

from startup.vllm.child_state import parse_cpus


@pytest.mark.parametrize(
    ("text", "cpus"),
    [
        ("0", {0}),
        ("0 2-5", {0, 2, 3, 4, 5}),
        ("0,3", {0, 3}),
        ("{0,1}", {0, 1}),
        ("{4},{6},{8}", {4, 6, 8}),
        ("granularity=fine,explicit,proclist=[0,1]", {0, 1}),
        ("granularity=fine,explicit,proclist=[2-4,7]", {2, 3, 4, 7}),
        ("", set()),
        ("cores", set()),
        ("compact", set()),
        ("granularity=fine,compact,1,0", set()),
        ("false", set()),
    ],
)
def test_cpus_of_an_openmp_variable_are_parsed(text: str, cpus: set[int]) -> None:
    assert parse_cpus(text) == cpus
