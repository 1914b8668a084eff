"""The table of a run: per file, what passed, failed, failed on plain vLLM too, and is not applicable."""

import fnmatch
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from tools.vllm_suite.file_run import SuiteResult
from vllm_cli.text_table import align


@dataclass(frozen=True)
class Reasons:
    """The lists of not_applicable.yaml: patterns of tests or files, with the reason."""

    not_applicable: Mapping[str, str]
    known_failures: Mapping[str, str]

    def why_not(self, test: str) -> str | None:
        """Why a file or a test is not applicable."""
        return _first_match(self.not_applicable, test)

    def why_failed(self, test: str) -> str | None:
        """The known reason of a failure."""
        return _first_match(self.known_failures, test)


@dataclass(frozen=True)
class Judged:
    """A result with its meaning for this program."""

    result: SuiteResult
    verdict: str
    """passed, failed, known (a failure with a reason), vllm (plain vLLM fails too) or not applicable."""
    reason: str


def judge(results: Sequence[SuiteResult], reasons: Reasons, on_vllm: Mapping[str, str]) -> list[Judged]:
    """Compares results with the lists and with the results of plain vLLM."""
    return [_judge(result, reasons, on_vllm) for result in results]


def _judge(result: SuiteResult, reasons: Reasons, on_vllm: Mapping[str, str]) -> Judged:
    if why := reasons.why_not(result.test):
        return Judged(result, "not applicable", why)
    if result.outcome == "not applicable":
        return Judged(result, "not applicable", result.reason)
    if on_vllm.get(result.test, "passed") != "passed":
        return Judged(result, "vllm", "plain vLLM does not pass this test with these models")
    if result.outcome == "failed" and (why := reasons.why_failed(result.test)):
        return Judged(result, "known", why)
    return Judged(result, result.outcome, result.reason)


def describe(judged: Sequence[Judged]) -> Iterator[str]:
    """The failures, the reasons of what does not count, and the table."""
    for one in judged:
        if one.verdict in ("failed", "known"):
            yield f"{one.verdict}: {one.result.test}: {one.reason.splitlines()[0] if one.reason else ''}"
    yield ""
    yield "Not applicable:"
    counts = Counter(one.reason for one in judged if one.verdict == "not applicable")
    yield from (f"{count:5} {reason}" for reason, count in counts.most_common())
    yield ""
    yield from _table(judged)
    counted = [one for one in judged if one.verdict in ("passed", "failed", "known")]
    num_passed = sum(one.verdict == "passed" for one in counted)
    share = 100 * num_passed / len(counted) if counted else 100.0
    yield ""
    yield f"{num_passed} of {len(counted)} tests passed that count: {share:.1f} %"


def _table(judged: Sequence[Judged]) -> list[str]:
    columns = ("passed", "failed", "known", "vllm", "not applicable")
    rows = [("file", "passed", "failed", "known failure", "fails on vLLM", "not applicable")]
    files = {one.result.file: None for one in judged}
    counts = Counter((one.result.file, one.verdict) for one in judged)
    for file in files:
        row = [str(counts[file, column] or "") for column in columns]
        rows.append((file.removeprefix("tests/entrypoints/"), *row))
    totals = Counter(one.verdict for one in judged)
    rows.append(("total", *(str(totals[column]) for column in columns)))
    return align(rows)


def _first_match(patterns: Mapping[str, str], test: str) -> str | None:
    name = test.removeprefix("tests/entrypoints/").replace("[", "(").replace("]", ")")
    return next((why for pattern, why in patterns.items() if fnmatch.fnmatchcase(name, pattern)), None)
