"""The trace follows Chrome's event format: complete events, and spans that nest in their rows."""

import json
from collections import defaultdict
from itertools import combinations

from startup.timeline.report import StartFacts, build_report, build_trace
from startup.timeline.spans import PhaseSpan
from startup.timeline.timeline import PhaseTimeline
from tests.startup.timeline.start_reports import report_of


def test_every_event_has_the_members_of_the_format() -> None:
    trace = json.loads(json.dumps(build_trace(report_of())))
    kinds = defaultdict(list)
    for event in trace["traceEvents"]:
        kinds[event["ph"]].append(event)
        assert isinstance(event["name"], str)
        assert isinstance(event["pid"], int)
        assert isinstance(event["tid"], int)
    assert set(kinds) == {"M", "X", "i"}
    for event in kinds["X"]:
        assert isinstance(event["ts"], int)
        assert isinstance(event["dur"], int)
        assert event["dur"] >= 0
    assert all(event["s"] == "g" for event in kinds["i"])


def test_each_process_has_a_named_track_and_the_critical_path_comes_first() -> None:
    events = build_trace(report_of())["traceEvents"]
    tracks = {event["pid"]: event["args"]["name"] for event in events if event["name"] == "process_name"}
    assert tracks[0] == "critical path"
    assert set(tracks.values()) == {"critical path", "api", "engine", "prefetch"}
    loads = [event for event in events if event["name"] == "load_weights" and tracks[event["pid"]] == "engine"]
    assert [(event["ts"], event["dur"]) for event in loads] == [(1_200_000, 500_000)]


def test_spans_that_overlap_without_nesting_get_rows_of_their_own() -> None:
    timeline = PhaseTimeline(0)
    times = {"outer": (0, 100), "inner": (10, 50), "crossing": (40, 120), "later": (130, 140), "same": (0, 100)}
    timeline.spans = [PhaseSpan("api", name, begin * 1000, end * 1000) for name, (begin, end) in times.items()]
    timeline.end_ns = 140_000
    events = build_trace(build_report(timeline, StartFacts(model="m", start_method="spawn")))["traceEvents"]
    drawn = [event for event in events if event["ph"] == "X" and event["pid"] == 1]
    assert len(drawn) == len(times)
    for one, other in combinations(drawn, 2):
        if one["tid"] == other["tid"]:
            first, second = sorted((one, other), key=lambda event: (event["ts"], -event["dur"]))
            is_apart = first["ts"] + first["dur"] <= second["ts"]
            is_inside = second["ts"] + second["dur"] <= first["ts"] + first["dur"]
            assert is_apart or is_inside, (one, other)
    rows = {event["name"]: event["tid"] for event in drawn}
    assert rows["outer"] == rows["inner"] == rows["later"] != rows["crossing"]
