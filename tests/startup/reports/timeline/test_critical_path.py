"""The critical path divides the start without gaps, and follows the chain of causes across processes."""

from itertools import pairwise
from pathlib import Path

import pytest

from startup.reports.timeline.spans import PhaseSpan, find_critical_path
from tests.support.properties import given, st

MS = 1_000_000

CASES = Path(__file__).with_name("critical_paths.txt").read_text().replace("\n    =>", " =>").splitlines()
"""Each case: its name, spans with begin and end in milliseconds, and the path until the last end."""


def parse(text: str) -> PhaseSpan:
    times, _, waits_for = text.partition(" for ")
    process, name, begin_ms, end_ms = times.split()
    return PhaseSpan(process, name, round(float(begin_ms) * MS), round(float(end_ms) * MS), waits_for or None)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.partition(":")[0])
def test_the_path_follows_what_the_start_waited_for(case):
    spans, expected = case.partition(": ")[2].split(" => ")
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


@pytest.mark.thorough
@given(st.lists(_SPANS, max_size=30))
def test_any_spans_give_a_partition(spans):
    path = find_critical_path(spans, begin_ns=0, end_ns=100 * MS)
    assert (path[0].begin_ns, path[-1].end_ns) == (0, 100 * MS)
    assert all(earlier.end_ns == later.begin_ns for earlier, later in pairwise(path))
    assert all(piece.begin_ns < piece.end_ns for piece in path)
    assert not any(piece.process == "prefetch" for piece in path)
