import random

import pytest

from tools.soak.ledger import Ledger, judge_answer
from tools.soak.results import Gauges, GroupSample, HealthFigures, SoakSample
from tools.soak.samples import parse_gauges
from tools.soak.verdict import WHOLE_TREE, Point, count_rests, find_problems, fit_trend, has_settled, measure_growths

MIB = 1 << 20
IDLE = Gauges(num_running=0, num_waiting=0, kv_cache_usage=0)
CHUNK = b'data: {"choices": [{"text": "a"}]}\n\n'
DONE = b"data: [DONE]\n\n"
METRICS = """# HELP vllm:num_requests_running Requests.
vllm:num_requests_running{engine="0",model_name="a"} 2.0
vllm:num_requests_running{engine="1",model_name="a"} 1.0
vllm:num_requests_waiting{engine="0"} 0.0
vllm:num_requests_waiting_by_reason{engine="0",reason="capacity"} 7.0
other_metric 1
"""


def group(mib: float, *, fds: int = 10, threads: int = 2, processes: int = 1) -> GroupSample:
    return GroupSample(int(mib * MIB), fds, threads, processes)


def sample(at_s: float, **groups: GroupSample) -> SoakSample:
    return SoakSample(at_s=at_s, stage="load", groups=groups, num_requests=0)


def problems(*endings: str, num_health_errors: int = 0, **changed: object) -> list[str]:
    health = HealthFigures(num_probes=9, num_errors=num_health_errors, p50_ms=1, p99_ms=2, max_ms=3)
    ledger = Ledger()
    for ending in endings or ("answered",):
        ledger.record("chat", ending)
    fine = {"growths": [], "rests": [], "gauges": IDLE, "health": health, "ledger": ledger}
    return find_problems(**(fine | changed))


def test_a_good_run_has_no_problem():
    assert problems("answered", "shed", "refused", "left", gauges=parse_gauges("other_metric 1\n")) == []


def test_gauges_of_all_engines_are_added_up_and_missing_ones_are_none():
    assert parse_gauges(METRICS) == Gauges(num_running=3, num_waiting=0, kv_cache_usage=None)


def test_each_role_and_all_processes_are_judged_separately():
    samples = [sample(at_s, server=group(200), engine=group(1000 + at_s / 60 * 2)) for at_s in range(0, 1200, 10)]
    growths = {growth.who: growth for growth in measure_growths(samples, 0.01)}
    assert {who for who, growth in growths.items() if not growth.is_flat} == {"engine", WHOLE_TREE}
    assert growths["engine"].per_ten_minutes == pytest.approx(0.02, rel=1e-3)
    found = problems(growths=list(growths.values()))
    assert found[0].startswith("all processes: RSS grew by 39.7 MiB, +1.67%")
    assert [line.partition(" grew")[0] for line in found] == ["all processes: RSS", "engine: RSS"]


@pytest.mark.parametrize(
    ("begin_mib", "mib_per_minute", "minutes"),
    [(1000, 0.9, 20), (10, 0.9 / 20, 20), (1000, 8, 1)],
    ids=["below the bound", "less than a MiB", "short, not extrapolated"],
)
def test_small_growth_is_flat(begin_mib, mib_per_minute, minutes):
    samples = [sample(at_s, engine=group(begin_mib + at_s / 60 * mib_per_minute)) for at_s in range(0, minutes * 60, 5)]
    assert all(growth.is_flat for growth in measure_growths(samples, 0.01))


@pytest.mark.parametrize(("mib_per_minute", "is_flat"), [(1, True), (4, False)])
def test_growth_within_the_waves_cannot_be_told_from_them(mib_per_minute: float, is_flat: bool) -> None:
    waves = [40 if at_s % 600 < 200 else 0 for at_s in range(0, 1800, 5)]
    samples = [
        sample(index * 5, server=group(200 + index * 5 / 60 * mib_per_minute + wave))
        for index, wave in enumerate(waves)
    ]
    growth = measure_growths(samples, 0.01)[0]
    assert growth.is_flat == is_flat
    assert growth.wave_bytes == pytest.approx(40 * MIB, rel=0.2)


def test_a_role_is_judged_on_the_samples_that_have_it():
    samples = [
        sample(at_s, server=group(50), **({"helper": group(20)} if at_s % 20 else {})) for at_s in range(0, 600, 10)
    ]
    (growth,) = [growth for growth in measure_growths(samples, 0.01) if growth.who == "helper"]
    assert growth.level_bytes == pytest.approx(20 * MIB)


def test_a_quarter_of_outliers_does_not_bend_the_line_of_many_points():
    source = random.Random(0)
    points = [Point(at_s, 5000 + at_s + (source.uniform(0, 9000) if at_s % 4 == 0 else 0)) for at_s in range(900)]
    trend = fit_trend(points)
    assert trend is not None
    assert trend.per_second == pytest.approx(1, abs=0.2)
    assert trend.level == pytest.approx(5000, rel=0.05)
    assert fit_trend([Point(1, 1), Point(1, 9)]) is None


@pytest.mark.parametrize(
    ("after", "expected"),
    [
        ({"server": group(10, fds=11)}, "server: 11 open files in the end, 10 after the warm-up"),
        ({"server": group(10, threads=3)}, "server: 3 threads in the end, 2 after the warm-up"),
        ({"server": group(9), "helper": group(5, fds=0, threads=0)}, "helper: 1 processes in the end, 0 after the"),
    ],
    ids=["files", "threads", "processes"],
)
def test_leftovers_are_reported(after, expected):
    rests = count_rests(sample(0, server=group(10)), sample(9, **after))
    (problem,) = problems(rests=rests)
    assert problem.startswith(expected)
    assert not has_settled(rests, IDLE)


def test_fewer_resources_than_after_the_warm_up_pass():
    rests = count_rests(sample(0, server=group(10), helper=group(5)), sample(9, server=group(8, fds=3, threads=1)))
    assert problems(rests=rests) == []
    assert has_settled(rests, IDLE)
    assert not has_settled(rests, Gauges(num_running=0, num_waiting=0, kv_cache_usage=0.5))


@pytest.mark.parametrize(
    ("endings", "expected"),
    [
        (("answered", "failed"), "1 requests ended with another error"),
        (("answered", "lost", "lost"), "2 requests were lost"),
        (("refused",), "no request was answered"),
    ],
    ids=["failed", "lost", "none"],
)
def test_failures_are_reported(endings, expected):
    (problem,) = problems(*endings)
    assert expected in problem


def test_missed_probes_are_reported():
    assert problems(num_health_errors=4) == ["4 probes of /health were not answered with 200"]


@pytest.mark.parametrize(
    ("status", "ending"),
    [(200, "answered"), (404, "refused"), (429, "shed"), (503, "shed"), (504, "shed"), (500, "failed")],
)
def test_a_plain_answer_is_judged_by_its_status(status, ending):
    assert judge_answer(status, b"{}", is_stream=False).ending == ending


@pytest.mark.parametrize(
    ("content", "ending"),
    [
        (CHUNK + DONE, "answered"),
        (CHUNK.replace(b"a", b'\\"error\\"') + DONE, "answered"),
        (CHUNK + b'data: {"error": {"code": 500}}\n\n' + DONE, "failed"),
        (CHUNK + b'data: {"error": {"code": 504}}\n\n' + DONE, "shed"),
        (CHUNK, "lost"),
        (b"", "lost"),
    ],
    ids=["complete", "the word error", "error", "overload", "no end", "nothing"],
)
def test_a_stream_is_judged_by_its_events(content, ending):
    assert judge_answer(200, content, is_stream=True).ending == ending
