"""Options of the benchmarks, and the figures of `bench serve`, computed from samples."""

from typing import Any

import pytest

from vllm_cli.bench.probe import ProbeSamples
from vllm_cli.bench.report import compare_rounds, percentile, summarize_rounds
from vllm_cli.bench.request import RequestSample, Usage
from vllm_cli.bench.serve import SERVE_METRICS, LoadSamples, compute_round
from vllm_cli.main import main

MS = 10**6


def sample(
    *, start_ms: int = 0, text_ms: tuple[int, ...] = (), end_ms: int, usage: Usage | None = None, **more: object
):
    times = tuple(time * MS for time in text_ms)
    return RequestSample(start_ns=start_ms * MS, end_ns=end_ms * MS, text_times_ns=times, usage=usage, **more)


def figures(*samples: RequestSample, probes: ProbeSamples | None = None, max_tokens: int = 3) -> dict[str, Any]:
    """The figures of a round of 2 s."""
    load = LoadSamples([*samples], duration_ns=2000 * MS, client_cpu_ns=100 * MS)
    return compute_round(load, probes or ProbeSamples([], 0), max_tokens=max_tokens)


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


def test_the_figures_of_a_round_come_from_its_requests():
    found = figures(
        sample(text_ms=(100, 110, 130), end_ms=131, usage=Usage(5, 3)),
        sample(start_ms=50, text_ms=(250, 260), end_ms=300, usage=Usage(6, 2)),
        probes=ProbeSamples([1 * MS, 3 * MS], num_errors=1),
    )
    assert {name: found[name] for name in _EXPECTED} == pytest.approx(_EXPECTED)


_EXPECTED = {
    "output_tokens": 5, "prompt_tokens": 11, "num_requests": 2, "num_short": 1, "output_tokens_per_s": 2.5,
    "requests_per_s": 1.0, "ttft_p50_ms": 150, "itl_p50_ms": 10, "itl_p99_ms": 19.8, "e2e_p50_ms": (131 + 250) / 2,
    "health_p50_ms": 2, "health_max_ms": 3, "num_probes": 2, "num_probe_errors": 1, "client_cpu_share": 0.05,
}  # fmt: skip


def test_the_time_per_output_token_is_that_of_vllm():
    """It is (last - first) / (tokens - 1) for each request with more than one token."""
    found = figures(
        sample(text_ms=(100, 130, 190), end_ms=200, usage=Usage(5, 10)),
        sample(text_ms=(200, 230), end_ms=240, usage=Usage(5, 2)),
        sample(text_ms=(300,), end_ms=310, usage=Usage(5, 1)),
    )
    assert found["tpot_p50_ms"] == pytest.approx((10 + 30) / 2)
    assert found["tpot_p99_ms"] == pytest.approx(29.8)


def test_tokens_are_counted_by_chunks_where_there_is_no_usage():
    assert figures(sample(text_ms=(1, 2, 3, 4), end_ms=5))["output_tokens"] == 4


def test_failed_requests_count_as_errors_only():
    bad = sample(text_ms=(900,), end_ms=1000, error="broken")
    found = figures(sample(text_ms=(10,), end_ms=20, usage=Usage(1, 1)), bad, bad)
    assert (found["num_requests"], found["num_errors"], found["errors"]) == (3, 2, ["broken"])
    assert found["requests_per_s"] == pytest.approx(0.5)
    assert found["ttft_p99_ms"] == pytest.approx(10)


def test_a_round_without_answers_has_no_latency():
    found = figures(sample(end_ms=1, error="refused"), probes=ProbeSamples([], 5))
    assert (found["output_tokens_per_s"], found["ttft_p50_ms"], found["health_p99_ms"]) == (0, None, None)
    assert "ttft_p50_ms" not in summarize_rounds(SERVE_METRICS, [found])


def test_rounds_are_summarized_by_median_minimum_and_maximum():
    rounds = [{"output_tokens_per_s": value} for value in (30.0, 10.0, 20.0)]
    spread = summarize_rounds(SERVE_METRICS, rounds)["output_tokens_per_s"]
    assert (spread.median, spread.min, spread.max) == (20, 10, 30)


def test_ratios_are_medians_of_round_ratios_and_not_ratios_of_medians():
    ours = [{"output_tokens_per_s": value} for value in (10.0, 20.0, 90.0)]
    theirs = [{"output_tokens_per_s": value} for value in (20.0, 10.0, 30.0)]
    spread = compare_rounds(SERVE_METRICS, ours, theirs)["output_tokens_per_s"]
    assert (spread.median, spread.min, spread.max) == (2.0, 0.5, 3.0)


def test_a_figure_that_one_side_lacks_has_no_ratio():
    ours, theirs = [{"ttft_p50_ms": None}], [{"ttft_p50_ms": 1.0}]
    assert "ttft_p50_ms" not in compare_rounds(SERVE_METRICS, ours, theirs)
    assert "ttft_p50_ms" not in compare_rounds(SERVE_METRICS, theirs, ours)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["serve"], "Name a server to measure"),
        (["serve", "--url", "ftp://x"], "is not an address"),
        (["serve", "--url", "x", "--concurrency", "1,0"], "is not a list such as 1,8,32"),
        (["serve", "--url", "x", "--concurrency", "one"], "is not a list such as 1,8,32"),
        (["serve", "--url", "x", "--rounds", "0"], "--rounds"),
        (["serve", "--url", "x", "--json", "no-such-folder/result.json"], "is not a file in an existing folder"),
        (["serve", "--cmd", "serve 'unbalanced"], "--cmd"),
        (["startup", "--cmd", "x 'y"], "--cmd"),
        (["startup", "--state", "lukewarm"], "lukewarm"),
        (["startup", "--cmd", "x", "--rounds", "0"], "--rounds"),
        (["startup", "--cmd", "x", "--evict", "no-such-file"], "no-such-file"),
        (["startup", "--cmd", "x", "--json", "no-such-folder/x.json"], "is not a file in an existing folder"),
    ],
    ids=lambda value: "_".join(value) if isinstance(value, list) else "",
)
def test_invalid_options_are_a_usage_error(words, message, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["bench", *words]) == 2
    assert message in capsys.readouterr().err
