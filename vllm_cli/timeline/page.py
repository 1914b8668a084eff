"""One start, or two to compare, as an HTML page: charts over time, then the phases as tables."""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

from startup.timeline.report import StartReport
from startup.timeline.spans import UNEXPLAINED
from vllm_cli.html_page import build_page, draw_key, draw_paragraph, draw_table
from vllm_cli.timeline.chart import PhaseColours, draw_chart
from vllm_cli.timeline.comparison import compare_phases

_BAR_WIDTH = 200


class NamedReport(NamedTuple):
    """A report and the name of its file."""

    name: str
    report: StartReport


def draw_timeline(starts: Sequence[NamedReport]) -> str:
    """The page for one start or for two."""
    reports = [start.report for start in starts]
    colours = PhaseColours(reports)
    end_s = max(report.total_s for report in reports)
    parts = [draw_paragraph(describe_start(start)) for start in starts]
    parts += [draw_chart(start.report, colours, title=_title(start), end_s=end_s) for start in starts]
    if len(reports) > 1:
        parts.append(_draw_differences(reports[0], reports[1], colours))
    parts += [_draw_phases(start, colours) for start in starts]
    return build_page("Start of " + " and ".join(dict.fromkeys(report.facts.model for report in reports)), parts)


def describe_start(start: NamedReport) -> str:
    """Model, start method, outcome, versions and page cache in one line."""
    report, facts = start.report, start.report.facts
    parts = [f"{start.name}: {facts.model}", f"start method {facts.start_method}", _describe_end(report)]
    parts += [f"{package} {version}" for package, version in facts.versions.items()]
    if facts.page_cache:
        parts.append(f"{facts.page_cache.resident_share:.0%} of the weights in memory")
    return ", ".join([*parts, report.created_at])


def _describe_end(report: StartReport) -> str:
    if report.facts.outcome == "failed":
        return f"failed after {report.total_s:.2f} s ({report.facts.error})"
    return f"{report.facts.outcome} after {report.total_s:.2f} s, {report.explained_share:.1%} explained"


def _title(start: NamedReport) -> str:
    return f"{start.name}: {start.report.total_s:.2f} s"


def _draw_phases(start: NamedReport, colours: PhaseColours) -> str:
    rows = [
        (
            draw_key(colours.of(phase.key), f"{phase.process}: {phase.name}"),
            f"{phase.begin_s:.3f}",
            f"{phase.took_s:.3f}",
            f"{phase.share:.1%}",
        )
        for phase in start.report.phases
    ]
    return draw_table(f"{start.name}: what the start waited for", ("phase", "at s", "took s", "share"), rows)


def _draw_differences(before: StartReport, after: StartReport, colours: PhaseColours) -> str:
    differences = compare_phases(before, after)
    widest_s = max((abs(phase.difference_s) for phase in differences), default=0.0) or 1.0
    rows = [
        (
            draw_key(colours.of(phase.key), f"{phase.process}: {phase.name}"),
            f"{phase.before_s:.3f}",
            f"{phase.after_s:.3f}",
            f"{phase.difference_s:+.3f}",
            _draw_difference(phase.difference_s / widest_s, is_known=phase.name != UNEXPLAINED),
        )
        for phase in differences
    ]
    total_s = (before.total_s, after.total_s, after.total_s - before.total_s)
    rows.append(("total", f"{total_s[0]:.3f}", f"{total_s[1]:.3f}", f"{total_s[2]:+.3f}", ""))
    return draw_table("What changed", ("phase", "before s", "after s", "change s", "faster | slower"), rows)


def _draw_difference(share: float, *, is_known: bool) -> str:
    """A bar left of the middle for faster, right of it for slower."""
    half = _BAR_WIDTH / 2
    width = half * abs(share)
    left = half if share > 0 else half - width
    colour = ("#c8453b" if share > 0 else "#2f9e6b") if is_known else "#999999"
    return "".join(_small_chart(left, width, colour))


def _small_chart(left: float, width: float, colour: str) -> Iterator[str]:
    half = _BAR_WIDTH / 2
    yield f'<svg viewBox="0 0 {_BAR_WIDTH} 12" width="{_BAR_WIDTH}" height="12" style="margin:0">'
    yield f'<rect x="{left:.1f}" y="1" width="{width:.1f}" height="10" fill="{colour}"/>'
    yield f'<line x1="{half}" x2="{half}" y1="0" y2="12"/></svg>'
