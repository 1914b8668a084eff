"""The delays of the event loop, read from a server's metrics."""

from math import inf

import pytest

from vllm_cli.bench.liveness.loop_lag import LoopLag, find_loop_delays, parse_loop_lag

TEXT = """\
# HELP vllm_cli:event_loop_lag_seconds How late each heartbeat was.
# TYPE vllm_cli:event_loop_lag_seconds histogram
vllm_cli:event_loop_lag_seconds_bucket{le="0.01"} 90.0
vllm_cli:event_loop_lag_seconds_bucket{le="0.05"} 96.0
vllm_cli:event_loop_lag_seconds_bucket{le="0.5"} 99.0
vllm_cli:event_loop_lag_seconds_bucket{le="+Inf"} 100.0
vllm_cli:event_loop_lag_seconds_count 100.0
# HELP vllm_cli:event_loop_max_lag_seconds Longest of the last minute.
# TYPE vllm_cli:event_loop_max_lag_seconds gauge
vllm_cli:event_loop_max_lag_seconds 0.7
vllm:num_requests_running{engine="0"} 3.0
"""
AFTER = LoopLag(0.7, {0.01: 90, 0.05: 96, 0.5: 99, inf: 100})


def test_both_families_are_found_among_others():
    assert parse_loop_lag(TEXT) == AFTER


@pytest.mark.parametrize("text", ["", "vllm:num_requests_running 3.0\n", "<html>event_loop_lag</html>"])
def test_a_server_without_these_metrics_gives_an_empty_reading(text):
    assert parse_loop_lag(text) == LoopLag()
    assert find_loop_delays(LoopLag(), parse_loop_lag(text)).max_s is None


def test_heartbeats_are_counted_between_two_readings():
    before = LoopLag(0.2, {0.01: 50, 0.05: 55, 0.5: 57, inf: 57})
    delays = find_loop_delays(before, AFTER)
    assert delays.num_late == {0.01: 3, 0.05: 2, 0.5: 1}
    assert delays.max_s == 0.7


@pytest.mark.parametrize(
    ("before", "expected_s", "is_bound"),
    [
        pytest.param(LoopLag(0.7, {0.01: 80, 0.05: 86, 0.5: 88, inf: 89}), 0.5, True, id="it looks back too far"),
        pytest.param(LoopLag(0.7, {0.01: 80, 0.05: 86, 0.5: 89, inf: 90}), 0.01, True, id="and the round was calm"),
        pytest.param(LoopLag(), 0.7, False, id="the gauge is from this round"),
    ],
)
def test_the_histogram_bounds_a_gauge_that_holds_an_earlier_lag(before, expected_s, is_bound):
    delays = find_loop_delays(before, AFTER)
    assert (delays.max_s, delays.is_bound) == (expected_s, is_bound)


def test_the_histogram_keeps_a_lag_that_the_gauge_has_dropped():
    before, after = LoopLag(0.0, {0.01: 1, 0.5: 1, inf: 1}), LoopLag(0.002, {0.01: 5, 0.5: 5, inf: 6})
    assert find_loop_delays(before, after).max_s == 0.5


def test_a_gauge_without_a_histogram_is_used_unchanged():
    delays = find_loop_delays(LoopLag(0.1), LoopLag(0.3))
    assert (delays.max_s, delays.num_late) == (0.3, {})
