"""The report of `bench serve`: the settings, one table for each level, then problems."""

from collections.abc import Iterator
from typing import TextIO

from vllm_cli.bench.serve.figures import LATE_MS, SERVE_METRICS
from vllm_cli.bench.serve.results import RoundFigures, ServeResult, ServeSideResult, name_load
from vllm_cli.bench.tables import Comparison, FigureTable, write_sections

IDLE = {
    "pause": "idle servers frozen",
    "run": "idle servers running",
    "stop": "idle servers stopped",
}


def write_serve_report(result: ServeResult, stream: TextIO) -> None:
    """Writes the whole report: drawn tables on a terminal, aligned text on a pipe."""
    write_sections(describe_run(result), build_tables(result), describe_problems(result), stream)


def describe_run(result: ServeResult) -> Iterator[str]:
    """The machine, the load, the servers, and how tokens were counted."""
    settings = result.settings
    yield f"{result.machine.description}, {result.created_at}"
    prefix = f" after the same {settings.shared_prefix_tokens}" if settings.shared_prefix_tokens else ""
    yield (
        f"/v1/{'chat/' if settings.endpoint == 'chat' else ''}completions, prompts of about {settings.prompt_tokens} "
        f"tokens{prefix}, {settings.max_tokens} new tokens, {'streamed' if settings.stream else 'not streamed'}, greedy"
    )
    for side in result.sides:
        version = f" {side.version}" if side.version else ""
        ready = f"; ready after {side.ready_after_s:.1f} s" if side.ready_after_s is not None else ""
        eos = "" if side.has_ignore_eos or not settings.ignore_eos else "; does not accept ignore_eos"
        yield f"{side.name}: {side.target}{version}; model {side.model}; tokens by {side.token_source}{eos}{ready}"
    if len(result.sides) > 1:
        yield f"Rounds alternate, {IDLE[settings.idle]}. Figures and ratios are medians over rounds (min-max)."


def build_tables(result: ServeResult) -> list[FigureTable]:
    """One table for each level."""
    tables = []
    for index, level in enumerate(result.sides[0].levels):
        comparison = Comparison(
            names=[side.name for side in result.sides],
            summaries=[side.levels[index].summary for side in result.sides],
            ratios=[ratio.ratios for ratio in result.ratios if ratio.concurrency == level.concurrency],
        )
        failed = [str(_count_errors(side, index)) for side in result.sides]
        rows = [*comparison.rows(SERVE_METRICS), ["failed requests", *failed, *("" for _ in comparison.ratios)]]
        num_requests = result.settings.num_requests[level.concurrency]
        load = name_load(level.concurrency, result.settings.request_rate)
        title = f"{load}: {num_requests} requests a round, rounds: {len(level.rounds)}"
        tables.append(FigureTable(title, comparison.header, rows))
    return tables


def describe_problems(result: ServeResult) -> Iterator[str]:
    """Errors, short answers and a busy load generator: reasons to distrust the figures."""
    for side in result.sides:
        for level in side.levels:
            where = f"{side.name} at {name_load(level.concurrency, result.settings.request_rate)}"
            yield from (f"{where}: {message}" for message in _messages(level.rounds))
            if num_short := sum(figures.num_short for figures in level.rounds):
                yield f"{where}: {num_short} answers ended before {result.settings.max_tokens} tokens"
            if num_probe_errors := sum(figures.num_probe_errors for figures in level.rounds):
                yield f"{where}: {num_probe_errors} probes of /health failed"
            if num_late := sum(figures.num_late for figures in level.rounds):
                num_requests = sum(figures.num_requests for figures in level.rounds)
                worst_ms = max(figures.delay_max_ms or 0 for figures in level.rounds)
                yield (
                    f"{where}: the load generator itself sent {num_late} of {num_requests} requests more than "
                    f"{LATE_MS} ms late, by up to {worst_ms:.0f} ms"
                )
            if (share := max(figures.client_cpu_share for figures in level.rounds)) > 0.5:
                yield f"{where}: the load generator used {share:.0%} of a processor; it may limit the throughput"


def _messages(rounds: list[RoundFigures]) -> list[str]:
    return list(dict.fromkeys(message for figures in rounds for message in figures.errors))


def _count_errors(side: ServeSideResult, index: int) -> int:
    return sum(figures.num_errors for figures in side.levels[index].rounds)
