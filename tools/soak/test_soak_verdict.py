import pytest

from tools.soak.ledger import Ledger
from tools.soak.results import Gauges, GroupSample, HealthFigures, SoakSample
from tools.soak.verdict import WHOLE_TREE, count_rests, find_problems, has_settled, measure_growths

MIB = 1 << 20
IDLE = Gauges(num_running=0, num_waiting=0, kv_cache_usage=0)
UNKNOWN = Gauges(num_running=None, num_waiting=None, kv_cache_usage=None)


def group(mib: float, *, fds: int = 10, threads: int = 2, processes: int = 1) -> GroupSample:
    return GroupSample(int(mib * MIB), int(mib * MIB), None, fds, threads, processes)


def sample(at_s: float, **groups: GroupSample) -> SoakSample:
    return SoakSample(at_s=at_s, stage="load", groups=groups, num_requests=0)


def health(*, num_errors: int = 0) -> HealthFigures:
    return HealthFigures(num_probes=9, num_errors=num_errors, p50_ms=1, p99_ms=2, max_ms=3, over_time=[])


def ledger(*endings: str) -> Ledger:
    book = Ledger()
    for ending in ("answered", *endings):
        book.record("chat", ending)
    return book


def problems(**changed: object) -> list[str]:
    fine = {"growths": [], "rests": [], "gauges": IDLE, "health": health(), "ledger": ledger()}
    return find_problems(**(fine | changed))


def test_a_good_run_has_no_problem():
    assert problems() == []
    assert problems(gauges=UNKNOWN, ledger=ledger("shed", "refused", "left")) == []


def test_each_role_and_all_processes_are_judged_separately():
    samples = [sample(at_s, server=group(200), engine=group(1000 + at_s / 60 * 2)) for at_s in range(0, 1200, 10)]
    growths = {(growth.who, growth.measure): growth for growth in measure_growths(samples, 0.01)}
    assert {key for key, growth in growths.items() if not growth.is_flat} == {
        ("engine", "rss"),
        (WHOLE_TREE, "rss"),
        (WHOLE_TREE, "pss"),
    }
    assert growths["engine", "rss"].per_ten_minutes == pytest.approx(0.02, rel=1e-3)
    found = problems(growths=list(growths.values()))
    assert [line.partition(" grew")[0] for line in found] == ["all processes: RSS", "engine: RSS"]
    assert found[0].startswith("all processes: RSS grew by 39.7 MiB, +1.67%")


def test_growth_below_the_bound_is_flat():
    samples = [sample(at_s, engine=group(1000 + at_s / 60 * 0.9)) for at_s in range(0, 1200, 10)]
    assert all(growth.is_flat for growth in measure_growths(samples, 0.01))


def test_less_than_a_mib_is_not_growth():
    samples = [sample(at_s, small=group(10 + at_s / 1200 * 0.9)) for at_s in range(0, 1200, 10)]
    (growth,) = [growth for growth in measure_growths(samples, 0.01) if growth.who == "small"]
    assert growth.per_ten_minutes > 0.01
    assert growth.is_flat


def test_a_short_run_is_not_extrapolated():
    """8 of 1000 MiB in a minute: less than 1 %, although ten minutes of it would be 8 %."""
    samples = [sample(at_s, engine=group(1000 + at_s / 60 * 8)) for at_s in range(60)]
    assert all(growth.is_flat for growth in measure_growths(samples, 0.01))


def test_a_role_is_judged_on_the_samples_that_have_it():
    samples = [
        sample(at_s, server=group(50), **({"helper": group(20)} if at_s % 20 else {})) for at_s in range(0, 600, 10)
    ]
    (growth,) = [growth for growth in measure_growths(samples, 0.01) if growth.who == "helper"]
    assert growth.level_bytes == pytest.approx(20 * MIB)


@pytest.mark.parametrize(
    ("after", "expected"),
    [
        (group(10, fds=11), "server: 11 open files in the end, 10 after the warm-up"),
        (group(10, threads=3), "server: 3 threads in the end, 2 after the warm-up"),
        (group(10, processes=2), "server: 2 processes in the end, 1 after the warm-up"),
    ],
    ids=["files", "threads", "processes"],
)
def test_leftovers_are_reported(after, expected):
    rests = count_rests(sample(0, server=group(10)), sample(9, server=after))
    assert problems(rests=rests) == [expected]
    assert not has_settled(rests, IDLE)


def test_fewer_resources_than_after_the_warm_up_pass():
    rests = count_rests(sample(0, server=group(10), helper=group(5)), sample(9, server=group(8, fds=3, threads=1)))
    assert problems(rests=rests) == []
    assert has_settled(rests, IDLE)


def test_a_new_role_at_the_end_is_reported():
    rests = count_rests(sample(0, server=group(10)), sample(9, server=group(10), helper=group(5)))
    assert "helper: 1 processes in the end, 0 after the warm-up" in problems(rests=rests)


@pytest.mark.parametrize("name", ["num_running", "num_waiting", "kv_cache_usage"])
def test_unfinished_work_is_reported(name):
    values = {"num_running": 0.0, "num_waiting": 0.0, "kv_cache_usage": 0.0} | {name: 0.5}
    gauges = Gauges(**values)
    assert len(problems(gauges=gauges)) == 1
    assert not has_settled([], gauges)


@pytest.mark.parametrize(
    ("changed", "expected"),
    [
        ({"ledger": ledger("failed")}, "1 requests ended with another error"),
        ({"ledger": ledger("lost", "lost")}, "2 requests were lost"),
        ({"ledger": Ledger()}, "no request was answered"),
        ({"health": health(num_errors=4)}, "4 probes of /health were not answered with 200"),
    ],
    ids=["failed", "lost", "none", "health"],
)
def test_failures_are_reported(changed, expected):
    (problem,) = problems(**changed)
    assert expected in problem
