"""The report of `bench liveness`: the settings, one table for each kind of load, then problems."""

from collections.abc import Iterator
from typing import Final, TextIO

from vllm_cli.bench.liveness.config import Kind, PayloadShape
from vllm_cli.bench.liveness.figures import LIVENESS_METRICS
from vllm_cli.bench.liveness.results import KindResult, KindSettings, LivenessResult, LivenessSettings
from vllm_cli.bench.serve.report import IDLE
from vllm_cli.bench.tables import Comparison, FigureTable, write_sections

_BUSY_CLIENT: Final = 0.5
"""Above this share of a processor, the load generator may limit the throughput."""
_FEW_PROBES: Final = 100
"""With fewer probes, the p99 is the maximum."""
_LATE_PROBE_SHARE: Final = 0.5
"""Above this share of a latency, the probe process's own delay is a problem."""


def write_liveness_report(result: LivenessResult, stream: TextIO) -> None:
    """Writes the whole report: drawn tables on a terminal, aligned text on a pipe."""
    write_sections(
        describe_liveness_run(result), build_liveness_tables(result), describe_liveness_problems(result), stream
    )


def describe_liveness_run(result: LivenessResult) -> Iterator[str]:
    """The machine, the kinds of load and the servers."""
    settings = result.settings
    yield f"{result.machine.description}, {result.created_at}"
    for kind in settings.kinds:
        yield f"{kind.kind}: {_describe_kind(kind.kind, settings)}"
    for side in result.sides:
        version = f" {side.version}" if side.version else ""
        ready = f"; ready after {side.ready_after_s:.1f} s" if side.ready_after_s is not None else ""
        yield f"{side.name}: {side.target}{version}; model {side.model}{ready}"
    if len(result.sides) > 1:
        yield f"Rounds alternate, {IDLE[settings.idle]}. Figures and ratios are medians over rounds (min-max)."


def build_liveness_tables(result: LivenessResult) -> list[FigureTable]:
    """One table for each kind of load."""
    tables = []
    for index, kind in enumerate(result.settings.kinds):
        comparison = Comparison(
            names=[side.name for side in result.sides],
            summaries=[side.kinds[index].summary for side in result.sides],
            ratios=[ratio.ratios for ratio in result.ratios if ratio.kind == kind.kind],
        )
        failed = [str(sum(figures.num_errors for figures in side.kinds[index].rounds)) for side in result.sides]
        rows = [*comparison.rows(LIVENESS_METRICS), ["failed requests", *failed, *("" for _ in comparison.ratios)]]
        tables.append(FigureTable(_title(kind, result.settings), comparison.header, rows))
    return tables


def describe_liveness_problems(result: LivenessResult) -> Iterator[str]:
    """Failures, repeated requests, few or late probes: reasons to distrust the figures."""
    for side in result.sides:
        for kind in side.kinds:
            yield from (f"{side.name}, {kind.kind}: {problem}" for problem in _find_problems(kind))


def _describe_kind(kind: Kind, settings: LivenessSettings) -> str:
    if kind == "mixed":
        return "cycle of " + ", ".join(settings.mixture)
    return _describe_payload(settings.shape)[kind]


def _describe_payload(shape: PayloadShape) -> dict[Kind, str]:
    conversation = f"conversations of {shape.turns} messages with {shape.turn_chars} characters each"
    answer = f"{shape.max_tokens} new token{'s' if shape.max_tokens > 1 else ''}"
    return {
        "tokenize-chat": f"/tokenize, {conversation}",
        "chat": f"/v1/chat/completions, {conversation}, {answer}",
        "images": f"/v1/chat/completions, a text and a JPEG of {shape.image_px}x{shape.image_px} pixels, {answer}",
        "prompt_embeds": f"/v1/completions, embeddings of [{shape.embed_rows}, {shape.embed_hidden}] "
        f"{shape.embed_dtype}, {answer}",
        "pooling": f"/v1/embeddings, {shape.batch} texts of {shape.turn_chars} characters",
    }


def _title(kind: KindSettings, settings: LivenessSettings) -> str:
    amount = f"{settings.duration_s:g} s" if settings.duration_s else f"{kind.num_requests} requests"
    return f"{kind.kind}, {kind.concurrency} at once: {amount} a round, rounds: {settings.num_rounds}"


def _find_problems(kind: KindResult) -> Iterator[str]:
    yield from _describe_failures(kind)
    if num_repeated := sum(figures.num_repeated for figures in kind.rounds):
        yield f"{num_repeated} requests repeat an earlier one of the same round; more --requests avoid that"
    if (num_probes := min(figures.num_probes for figures in kind.rounds)) < _FEW_PROBES:
        yield f"only {num_probes} probes in a round; --duration makes rounds longer"
    if num_probe_errors := sum(figures.num_probe_errors for figures in kind.rounds):
        yield f"{num_probe_errors} probes of /health failed"
    if (share := max(figures.client_cpu_share for figures in kind.rounds)) > _BUSY_CLIENT:
        yield f"the load generator used {share:.0%} of a processor; it may limit the throughput"
    if any(figures.is_loop_lag_bound for figures in kind.rounds):
        yield "the event loop lag max is a bound: the server's gauge still held a longer lag from before the round"
    lag, health = kind.summary.get("probe_lag_p99_ms"), kind.summary.get("health_p99_ms")
    if lag and health and lag.median > _LATE_PROBE_SHARE * health.median:
        yield f"the probe's own process woke up {lag.median:.1f} ms late (p99): part of /health's p99 is the machine's"
        if not all(figures.is_probe_realtime for figures in kind.rounds):
            yield "run as root, the benchmark gives that process real-time priority"


def _describe_failures(kind: KindResult) -> Iterator[str]:
    """One line for each status, with the message of the first response."""
    failures = [failure for figures in kind.rounds for failure in figures.failures]
    for status in dict.fromkeys(failure.status for failure in failures):
        alike = [failure for failure in failures if failure.status == status]
        fate = "counted as served" if alike[0].is_accepted else "failed"
        yield f"{sum(failure.num for failure in alike)} requests {fate}: {alike[0].message}"
