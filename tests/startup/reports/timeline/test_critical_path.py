"""The critical path divides the start without gaps, and follows the chain of causes across processes."""

from itertools import pairwise

import pytest

from startup.reports.timeline.spans import PhaseSpan, find_critical_path
from tests.support.properties import given, st

MS = 1_000_000

CASES = {
    "a gap is unexplained": ("api a 0 10, api b 15 20", "api:a 10, api:unexplained 15, api:b 20"),
    "an inner span explains its part of the outer one": (
        "api outer 0 30, api inner 10 20",
        "api:outer 10, api:inner 20, api:outer 30",
    ),
    "the engine takes longer than the work of the api process": (
        "api boot 0 10, api import_server 10 60, api wait 60 100 for engine, engine import_torch 10 80, "
        "engine load 80 95",
        "api:boot 10, engine:import_torch 80, engine:load 95, api:wait 100",
    ),
    "a chain of three processes": (
        "api boot 0 10, api import_server 10 50, api fork_engine 50 91 for forkserver, api wait 91 120 for engine, "
        "forkserver preload 10 90, engine load 92 120",
        "api:boot 10, forkserver:preload 90, api:fork_engine 91, api:wait 92, engine:load 120",
    ),
    "an engine requested early waits for the imports of the forkserver": (
        "api boot 0 10, api import_server 10 105, api wait 105 120 for engine, forkserver preload 10 90, "
        "engine load 95 120",
        "api:boot 10, forkserver:preload 95, engine:load 120",
    ),
    "an idle engine waited for the work that the api process finished then": (
        "api build_renderer 0 29, api wait 29 40 for engine, engine load 5 20, engine first_token 30 40",
        "api:build_renderer 29, engine:unexplained 30, engine:first_token 40",
    ),
    "an idle engine did not wait for a wait for itself": (
        "api build 0 22, api first_wait 22 28 for engine, api second_wait 28 40 for engine, engine load 5 20, "
        "engine first_token 30 40",
        "api:build 22, engine:unexplained 30, engine:first_token 40",
    ),
    "a wait of the engine for the api process returns the path to it": (
        "api build_renderer 0 30, api wait 30 40 for engine, engine load 5 20, engine await_request 20 30 for api, "
        "engine first_token 30 40",
        "api:build_renderer 30, engine:first_token 40",
    ),
    "a gap of the api process is explained by the work of the engine": (
        "api boot 0 20, engine load 10 35, api end 40 40",
        "api:boot 20, engine:load 35, api:unexplained 40",
    ),
    "no process waits for prefetch": ("api boot 0 10, prefetch read 5 40", "api:boot 10, api:unexplained 40"),
    "a tiny gap between two spans belongs to the first": ("api a 0 10, api b 10.05 20", "api:a 10.05, api:b 20"),
    "spans are cut off where the start begins": ("api long -50 10", "api:long 10"),
}
"""Spans with begin and end in milliseconds -> the path until the last end, with the ends of its pieces."""


def parse(text: str) -> PhaseSpan:
    times, _, waits_for = text.partition(" for ")
    process, name, begin_ms, end_ms = times.split()
    return PhaseSpan(process, name, round(float(begin_ms) * MS), round(float(end_ms) * MS), waits_for or None)


@pytest.mark.parametrize(("spans", "expected"), CASES.values(), ids=CASES)
def test_the_path_follows_what_the_start_waited_for(spans, expected):
    parsed = list(map(parse, spans.split(", ")))
    path = find_critical_path(parsed, begin_ns=0, end_ns=max(span.end_ns for span in parsed))
    assert ", ".join(f"{span.process}:{span.name} {span.end_ns / MS:g}" for span in path) == expected


_PROCESSES = ("api", "engine", "forkserver", "prefetch")
_SPANS = st.builds(
    lambda process, begin_ns, num_ns, waits_for: PhaseSpan(process, "s", begin_ns, begin_ns + num_ns, waits_for),
    st.sampled_from(_PROCESSES),
    st.integers(-10 * MS, 110 * MS),
    st.sampled_from([0, MS // 100]) | st.integers(0, 40 * MS),
    st.sampled_from([None, *_PROCESSES, "unknown"]),
)


@given(st.lists(_SPANS, max_size=30))
def test_any_spans_give_a_partition(spans):
    path = find_critical_path(spans, begin_ns=0, end_ns=100 * MS)
    assert (path[0].begin_ns, path[-1].end_ns) == (0, 100 * MS)
    assert all(earlier.end_ns == later.begin_ns for earlier, later in pairwise(path))
    assert all(piece.begin_ns < piece.end_ns for piece in path)
    assert not any(piece.process == "prefetch" for piece in path)
