"""The critical path is a partition of the start, and follows the chain of causes across processes."""

import random
from itertools import pairwise

from startup.timeline.critical_path import find_critical_path
from startup.timeline.spans import PhaseSpan

MS = 1_000_000


def span(process: str, name: str, begin_ms: float, end_ms: float, waits_for: str | None = None) -> PhaseSpan:
    return PhaseSpan(process, name, round(begin_ms * MS), round(end_ms * MS), waits_for)


def path_of(*spans: PhaseSpan, end_ms: float) -> list[tuple[str, float, float]]:
    path = find_critical_path(spans, begin_ns=0, end_ns=round(end_ms * MS))
    return [(f"{s.process}:{s.name}", s.begin_ns / MS, s.end_ns / MS) for s in path]


def test_one_process_explains_its_own_time_and_a_gap_is_unexplained() -> None:
    assert path_of(span("api", "a", 0, 10), span("api", "b", 15, 20), end_ms=20) == [
        ("api:a", 0, 10),
        ("api:unexplained", 10, 15),
        ("api:b", 15, 20),
    ]


def test_no_span_at_all_leaves_everything_unexplained() -> None:
    assert path_of(end_ms=5) == [("api:unexplained", 0, 5)]


def test_an_inner_span_explains_its_part_of_the_outer_one() -> None:
    assert path_of(span("api", "outer", 0, 30), span("api", "inner", 10, 20), end_ms=30) == [
        ("api:outer", 0, 10),
        ("api:inner", 10, 20),
        ("api:outer", 20, 30),
    ]


def test_work_of_the_api_process_is_not_on_the_path_while_the_engine_takes_longer() -> None:
    spans = (
        span("api", "boot", 0, 10),
        span("api", "import_server", 10, 60),
        span("api", "wait", 60, 100, "engine"),
        span("engine", "import_torch", 10, 80),
        span("engine", "load", 80, 95),
    )
    assert path_of(*spans, end_ms=100) == [
        ("api:boot", 0, 10),
        ("engine:import_torch", 10, 80),
        ("engine:load", 80, 95),
        ("api:wait", 95, 100),
    ]


def test_work_of_the_engine_is_not_on_the_path_while_the_api_process_takes_longer() -> None:
    spans = (
        span("api", "import_server", 0, 60),
        span("api", "wait", 60, 61, "engine"),
        span("engine", "load", 10, 40),
    )
    assert path_of(*spans, end_ms=61) == [("api:import_server", 0, 60), ("api:wait", 60, 61)]


def test_a_chain_of_three_processes_is_followed_to_its_beginning() -> None:
    spans = (
        span("api", "boot", 0, 10),
        span("api", "import_server", 10, 50),
        span("api", "fork_engine", 50, 91, "forkserver"),
        span("api", "wait", 91, 120, "engine"),
        span("forkserver", "preload", 10, 90),
        span("engine", "load", 92, 120),
    )
    assert path_of(*spans, end_ms=120) == [
        ("api:boot", 0, 10),
        ("forkserver:preload", 10, 90),
        ("api:fork_engine", 90, 91),
        ("api:wait", 91, 92),
        ("engine:load", 92, 120),
    ]


def test_an_engine_requested_early_waited_for_the_imports_of_the_forkserver() -> None:
    spans = (
        span("api", "boot", 0, 10),
        span("api", "import_server", 10, 105),
        span("api", "wait", 105, 120, "engine"),
        span("forkserver", "preload", 10, 90),
        span("engine", "load", 95, 120),
    )
    assert path_of(*spans, end_ms=120) == [
        ("api:boot", 0, 10),
        ("forkserver:preload", 10, 95),
        ("engine:load", 95, 120),
    ]


def test_an_engine_requested_after_the_imports_waited_for_the_api_process() -> None:
    spans = (
        span("api", "boot", 0, 10),
        span("api", "download", 10, 95),
        span("api", "wait", 95, 120, "engine"),
        span("forkserver", "preload", 10, 50),
        span("engine", "load", 95, 120),
    )
    assert path_of(*spans, end_ms=120) == [
        ("api:boot", 0, 10),
        ("api:download", 10, 95),
        ("engine:load", 95, 120),
    ]


def test_an_idle_engine_waited_for_the_work_that_the_api_process_finished_then() -> None:
    spans = (
        span("api", "build_renderer", 0, 29),
        span("api", "wait", 29, 40, "engine"),
        span("engine", "load", 5, 20),
        span("engine", "first_token", 30, 40),
    )
    assert path_of(*spans, end_ms=40) == [
        ("api:build_renderer", 0, 29),
        ("engine:unexplained", 29, 30),
        ("engine:first_token", 30, 40),
    ]


def test_an_idle_engine_waited_for_the_process_that_the_api_process_waited_for() -> None:
    spans = (
        span("api", "boot", 0, 10),
        span("api", "fork_helper", 10, 26, "forkserver"),
        span("api", "wait", 26, 40, "engine"),
        span("forkserver", "preload", 5, 25),
        span("engine", "load", 5, 20),
        span("engine", "first_token", 30, 40),
    )
    assert path_of(*spans, end_ms=40) == [
        ("api:boot", 0, 5),
        ("forkserver:preload", 5, 25),
        ("api:fork_helper", 25, 26),
        ("engine:unexplained", 26, 30),
        ("engine:first_token", 30, 40),
    ]


def test_an_idle_engine_did_not_wait_for_a_wait_for_itself() -> None:
    spans = (
        span("api", "build", 0, 22),
        span("api", "first_wait", 22, 28, "engine"),
        span("api", "second_wait", 28, 40, "engine"),
        span("engine", "load", 5, 20),
        span("engine", "first_token", 30, 40),
    )
    assert path_of(*spans, end_ms=40) == [
        ("api:build", 0, 22),
        ("engine:unexplained", 22, 30),
        ("engine:first_token", 30, 40),
    ]


def test_a_wait_of_the_engine_for_the_api_process_returns_the_path_to_it() -> None:
    spans = (
        span("api", "build_renderer", 0, 30),
        span("api", "wait", 30, 40, "engine"),
        span("engine", "load", 5, 20),
        span("engine", "await_request", 20, 30, "api"),
        span("engine", "first_token", 30, 40),
    )
    assert path_of(*spans, end_ms=40) == [("api:build_renderer", 0, 30), ("engine:first_token", 30, 40)]


def test_a_gap_of_the_api_process_is_explained_by_the_work_of_the_engine() -> None:
    spans = (span("api", "boot", 0, 20), span("engine", "load", 10, 35))
    assert path_of(*spans, end_ms=40) == [("api:boot", 0, 20), ("engine:load", 20, 35), ("api:unexplained", 35, 40)]


def test_prefetch_is_never_on_the_path_since_no_process_waits_for_it() -> None:
    spans = (span("api", "boot", 0, 10), span("prefetch", "read", 5, 40))
    assert path_of(*spans, end_ms=40) == [("api:boot", 0, 10), ("api:unexplained", 10, 40)]


def test_a_tiny_gap_between_two_spans_belongs_to_the_first() -> None:
    assert path_of(span("api", "a", 0, 10), span("api", "b", 10.05, 20), end_ms=20) == [
        ("api:a", 0, 10.05),
        ("api:b", 10.05, 20),
    ]


def test_spans_are_cut_off_where_the_start_begins_and_ends() -> None:
    assert path_of(span("api", "long", -50, 500), end_ms=10) == [("api:long", 0, 10)]


def test_two_processes_that_wait_for_each_other_end_the_search() -> None:
    spans = (span("api", "wait", 0, 40, "engine"), span("engine", "wait", 0, 40, "api"))
    assert sum(end - begin for _, begin, end in path_of(*spans, end_ms=40)) == 40


def test_any_spans_give_a_partition() -> None:
    for seed in range(500):
        path = find_critical_path(random_spans(random.Random(seed)), begin_ns=0, end_ns=100 * MS)
        assert (path[0].begin_ns, path[-1].end_ns) == (0, 100 * MS), seed
        assert all(earlier.end_ns == later.begin_ns for earlier, later in pairwise(path)), seed
        assert all(piece.begin_ns < piece.end_ns for piece in path), seed
        assert not any(piece.process == "prefetch" for piece in path), seed


def random_spans(source: random.Random) -> list[PhaseSpan]:
    processes = ("api", "engine", "forkserver", "prefetch")
    spans = []
    for number in range(source.randrange(30)):
        begin = source.uniform(-10, 110)
        end = begin + source.random() * source.choice((0, 0.01, 3, 40))
        waits_for = source.choice((None, None, *processes, "unknown"))
        spans.append(span(source.choice(processes), f"s{number}", begin, end, waits_for))
    return spans
