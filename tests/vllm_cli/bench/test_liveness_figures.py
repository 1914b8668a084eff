"""The figures and the default amounts of `bench liveness`."""

import pytest

from vllm_cli.bench.config import TargetSpec
from vllm_cli.bench.liveness.config import LivenessConfig
from vllm_cli.bench.liveness.figures import LivenessFigures, measure_liveness
from vllm_cli.bench.liveness.loop_lag import LoopDelays
from vllm_cli.bench.load import LoadSamples
from vllm_cli.bench.probe import ProbeSamples
from vllm_cli.bench.request import RequestSample

MS = 10**6
UNKNOWN = LoopDelays()


def sample(start_ms: int, end_ms: int, **more: object) -> RequestSample:
    return RequestSample(start_ns=start_ms * MS, end_ns=end_ms * MS, **{"status": 200, **more})


def measure(
    requests: list[RequestSample],
    *,
    probes: ProbeSamples | None = None,
    delays: LoopDelays = UNKNOWN,
    num_different: int | None = None,
    accepted: tuple[int, ...] = (),
) -> LivenessFigures:
    load = LoadSamples(requests, duration_ns=1000 * MS, client_cpu_ns=200 * MS)
    num_different = len(requests) if num_different is None else num_different
    probes = probes or ProbeSamples([], 0)
    return measure_liveness(load, probes, delays, num_different=num_different, accepted_statuses=accepted)


def test_only_probes_in_flight_during_the_load_count():
    probes = ProbeSamples(
        latencies_ns=[900 * MS, 2 * MS, 4 * MS, 30 * MS, 700 * MS],
        num_errors=3,
        due_ns=[-1000 * MS, 0, 500 * MS, 980 * MS, 1001 * MS],
        wakes_ns=[(-1000 * MS, 50 * MS), (0, 1 * MS), (500 * MS, 3 * MS)],
        is_realtime=True,
    )
    figures = measure([sample(0, 1000)], probes=probes)
    assert (figures.num_probes, figures.num_probe_errors) == (3, 3)
    assert (figures.health_p50_ms, figures.health_max_ms) == (pytest.approx(4), pytest.approx(30))
    assert (figures.probe_lag_p50_ms, figures.probe_lag_max_ms) == (pytest.approx(2), pytest.approx(3))
    assert figures.is_probe_realtime


def test_a_probe_sent_before_the_load_and_answered_during_it_counts():
    figures = measure([sample(0, 1000)], probes=ProbeSamples([300 * MS], 0, due_ns=[-5 * MS]))
    assert figures.health_max_ms == pytest.approx(300)


def test_rejected_requests_count_only_as_errors_unless_their_status_is_accepted():
    requests = [
        sample(0, 100, text_times_ns=(50 * MS,)),
        sample(0, 900, status=400, error="HTTP 400: too long"),
        sample(0, 900, status=400, error="HTTP 400: too loud"),
        sample(0, 900, status=None, error="ConnectionResetError"),
    ]
    figures = measure(requests)
    assert (figures.num_requests, figures.num_errors) == (4, 3)
    assert (figures.requests_per_s, figures.latency_p99_ms) == (pytest.approx(1), pytest.approx(100))
    assert figures.ttft_p50_ms == pytest.approx(50)
    assert [(failure.status, failure.num, failure.message) for failure in figures.failures] == [
        (400, 2, "HTTP 400: too long"),
        (None, 1, "ConnectionResetError"),
    ]
    accepted = measure(requests, accepted=(400,))
    assert (accepted.num_errors, accepted.requests_per_s) == (1, pytest.approx(3))
    assert [failure.is_accepted for failure in accepted.failures] == [True, False]


def test_the_servers_loop_lag_is_in_the_figures():
    figures = measure([sample(0, 1000)], delays=LoopDelays(0.25, num_late={0.005: 9, 0.01: 7, 0.05: 2}))
    assert (figures.loop_lag_max_ms, figures.num_loop_lags_10ms, figures.num_loop_lags_50ms) == (250, 7, 2)
    assert measure([sample(0, 1000)], delays=LoopDelays(0.25, num_late={0.02: 1})).num_loop_lags_10ms is None


def test_requests_beyond_the_different_ones_are_repeated():
    assert measure([sample(0, 10)] * 7, num_different=5).num_repeated == 2
    assert measure([sample(0, 10)] * 3, num_different=5).num_repeated == 0


@pytest.mark.parametrize(
    ("kind", "changed", "concurrency", "num_requests"),
    [
        ("chat", {}, 300, 600),
        ("prompt_embeds", {}, 16, 32),
        ("images", {"concurrency": 2}, 2, 8),
        ("images", {"concurrency": 2, "num_requests": 3}, 2, 3),
    ],
)
def test_each_kind_has_default_amounts(kind, changed, concurrency, num_requests):
    config = LivenessConfig(targets=(TargetSpec(name="A", url="x"),), kinds=(kind,), **changed)
    assert (config.concurrency_of(kind), config.requests_of(kind)) == (concurrency, num_requests)
