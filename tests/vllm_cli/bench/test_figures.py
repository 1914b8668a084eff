"""Figures over rounds."""

import pytest

from vllm_cli.bench.report import Metric, compare_rounds, percentile, summarize_rounds

METRICS = (Metric("first_token_s", "first token s"), Metric("num_refused", "probes refused", is_compared=False))


@pytest.mark.parametrize(
    ("values", "percent", "expected"),
    [
        *(([50, 10, 40, 20, 30], *each) for each in ((0, 10), (25, 20), (50, 30), (90, 46), (99, 49.6), (100, 50))),
        ([7], 99, 7),
        ([], 50, None),
    ],
    ids=str,
)
def test_percentiles_lie_between_neighbours(values, percent, expected):
    assert percentile(values, percent) == pytest.approx(expected)


def test_rounds_have_medians_and_ratios_are_medians_of_round_ratios_and_not_ratios_of_medians():
    ours, theirs = (
        [{"first_token_s": value} for value in values] for values in ((10.0, 20.0, 90.0), (20.0, 10.0, 30.0))
    )
    spread = summarize_rounds(METRICS, theirs)["first_token_s"]
    assert (spread.median, spread.min, spread.max) == (20, 10, 30)
    spread = compare_rounds(METRICS, ours, theirs)["first_token_s"]
    assert (spread.median, spread.min, spread.max) == (2.0, 0.5, 3.0)


def test_a_figure_that_one_side_lacks_and_one_that_is_not_compared_have_no_ratio():
    ours, theirs = [{"first_token_s": None, "num_refused": 1}], [{"first_token_s": 1.0, "num_refused": 2}]
    assert compare_rounds(METRICS, ours, theirs) == compare_rounds(METRICS, theirs, ours) == {}
    assert set(summarize_rounds(METRICS, ours)) == {"num_refused"}
