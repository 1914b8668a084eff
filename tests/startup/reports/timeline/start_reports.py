"""Builds reports of starts with known times, for tests."""

from startup.reports.timeline.report import PageCacheFacts, StartFacts, StartReport, build_report
from startup.reports.timeline.timeline import PhaseSpan, PhaseTimeline

NS = 1_000_000_000


def report_of(*, import_s: float = 1.0, resident_share: float | None = None) -> StartReport:
    """A start with 0.2 s of boot. Then the engine imports and loads. The API process imports and waits."""
    timeline = PhaseTimeline(0)
    end_s = 0.2 + import_s + 0.5
    engine = [("import_torch", 0.2, 0.2 + import_s), ("load_weights", 0.2 + import_s, end_s)]
    timeline.add("api", [("boot", 0, round(0.2 * NS)), ("import_server", round(0.2 * NS), round(0.5 * NS))])
    timeline.spans.append(PhaseSpan("api", "wait_for_engine", round(0.5 * NS), round(end_s * NS), "engine"))
    timeline.add("engine", [(name, round(begin * NS), round(end * NS)) for name, begin, end in engine])
    timeline.add("prefetch", [("read", round(0.1 * NS), round(0.9 * NS))])
    timeline.marks["listening"] = round(0.05 * NS)
    timeline.end_ns = round(end_s * NS)
    page_cache = PageCacheFacts(total_bytes=1000, resident_bytes=round(1000 * (resident_share or 0)))
    return build_report(
        timeline,
        StartFacts(
            model="tiny",
            start_method="forkserver",
            versions={"torch": "2.13.0"},
            page_cache=None if resident_share is None else page_cache,
        ),
    )
