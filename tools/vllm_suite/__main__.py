"""Runs vLLM's own tests of its entrypoints against this program: `make test-vllm-suite VLLM_SOURCE=PATH`."""

import json
import signal
import sys
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path
from queue import SimpleQueue
from typing import Final

import click
import yaml

from tools.vllm_suite.file_run import FileRunner, SuiteResult
from tools.vllm_suite.report import Reasons, describe, judge
from tools.vllm_suite.workspace import HERE, Workspace, prepare_workspace

_ENTRYPOINTS: Final = "tests/entrypoints"
_VLLM_RESULTS: Final = HERE / "vllm-0.32-cpu.json"
_SERVER_WORDS: Final = ("Remote", '"vllm"', "vllm.entrypoints.openai.api_server", "schemathesis")
"""A file without these, and without them in the conftest.py above it, starts no server."""


@click.command()
@click.option("--server", type=click.Choice(["ours", "vllm"]), default="ours", help="Which program the tests start.")
@click.option("--json", "report", type=click.Path(path_type=Path), help="Write the results to a file.")
@click.option("--vllm-results", type=click.Path(path_type=Path), default=_VLLM_RESULTS, help="Those of plain vLLM.")
@click.option("--jobs", default=1, show_default=True, help="Processes that share the files.")
@click.option("--timeout", "timeout_s", default=900.0, show_default=True, help="Seconds for one file.")
@click.argument("vllm_source", type=click.Path(path_type=Path, exists=True))
@click.argument("files", nargs=-1)
def main(
    *,
    server: str,
    report: Path | None,
    vllm_results: Path,
    jobs: int,
    timeout_s: float,
    vllm_source: Path,
    files: Sequence[str],
) -> None:
    """Run the tests below tests/entrypoints of VLLM_SOURCE, or FILES of them (such as `pooling/embed`).

    With `--server vllm`, plain vLLM is tested instead, and its results are kept in the repository: tests that
    it does not pass do not count against this program.
    """
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    workspace = prepare_workspace(vllm_source.resolve())
    reasons = _read_reasons()
    chosen = choose_files(workspace.source, files)
    results: list[SuiteResult] = []
    for file, found in _run_files(workspace, chosen, reasons, server=server, jobs=jobs, timeout_s=timeout_s):
        results += found
        _show_progress(f"{len(results)} tests; {file}", found)
        if server == "vllm":
            _keep_vllm_results(vllm_results, found)
    results.sort(key=lambda result: chosen.index(result.file))
    judged = judge(results, reasons, {} if server == "vllm" else _read_vllm_results(vllm_results))
    click.echo("\n".join(describe(judged)))
    if report is not None:
        report.parent.mkdir(exist_ok=True)
        rows = [asdict(one.result) | {"verdict": one.verdict, "reason": one.reason} for one in judged]
        report.write_text(json.dumps(rows, indent=1))
    sys.exit(server == "ours" and any(one.verdict == "failed" for one in judged))


def _run_files(
    workspace: Workspace, files: Sequence[str], reasons: Reasons, *, server: str, jobs: int, timeout_s: float
) -> Iterator[tuple[str, list[SuiteResult]]]:
    """Yields each file with its results: first those that need no run, then the others as they end."""
    applicable = []
    for file in files:
        if why := reasons.why_not(file) or _why_without_server(workspace.source / file, workspace.source):
            yield file, _without_run(workspace, file, why)
        else:
            applicable.append(file)
    runner = FileRunner(workspace, server=server, timeout_s=timeout_s)
    found: SimpleQueue[tuple[str, list[SuiteResult]] | None] = SimpleQueue()

    def run_share(number: int) -> None:
        for result in runner.run(applicable[number::jobs], f"{server}-{number}"):
            found.put(result)

    pool = ThreadPoolExecutor(jobs)
    try:
        shares = [pool.submit(run_share, number) for number in range(jobs)]
        for share in shares:
            share.add_done_callback(lambda _: found.put(None))
        for _ in shares:
            yield from iter(found.get, None)
        for share in shares:
            share.result()
    finally:
        runner.stop()
        pool.shutdown(cancel_futures=True)


def choose_files(source: Path, beginnings: Sequence[str]) -> list[str]:
    """All test files, or those whose path begins so, named from the source's root."""
    names = [str(path.relative_to(source)) for path in sorted((source / _ENTRYPOINTS).rglob("test_*.py"))]
    wanted = tuple(f"{_ENTRYPOINTS}/{word.removeprefix(f'{_ENTRYPOINTS}/')}" for word in beginnings)
    return [name for name in names if name.startswith(wanted or _ENTRYPOINTS)]


def _why_without_server(path: Path, source: Path) -> str | None:
    """Looks at the file, and at each conftest.py from there up to the folder of entrypoints."""
    folders = [folder for folder in path.parents if folder.is_relative_to(source / _ENTRYPOINTS)]
    files = [path, *(folder / "conftest.py" for folder in folders)]
    starts_server = any(word in file.read_text() for file in files if file.exists() for word in _SERVER_WORDS)
    return None if starts_server else "starts no server: tests vLLM's own modules in its process"


def _without_run(workspace: Workspace, file: str, why: str) -> list[SuiteResult]:
    lines = (workspace.source / file).read_text().splitlines()
    names = [line.split("def ")[1].split("(")[0] for line in lines if "def test_" in line.split("(")[0]]
    return [SuiteResult(f"{file}::{name}", "not applicable", why) for name in dict.fromkeys(names)]


def _show_progress(name: str, results: Sequence[SuiteResult]) -> None:
    outcomes = [result.outcome for result in results]
    counts = ", ".join(f"{outcomes.count(outcome)} {outcome}" for outcome in dict.fromkeys(outcomes))
    click.echo(f"{name}: {counts}")


def _read_reasons() -> Reasons:
    lists = yaml.safe_load((HERE / "not_applicable.yaml").read_text())
    return Reasons(_by_pattern(lists["not_applicable"]), _by_pattern(lists["known_failures"]))


def _by_pattern(groups: Mapping[str, Sequence[str]] | None) -> dict[str, str]:
    return {pattern: reason for reason, patterns in (groups or {}).items() for pattern in patterns}


def _read_vllm_results(path: Path) -> dict[str, str]:
    return json.loads(path.read_text()) if path.exists() else {}


def _keep_vllm_results(path: Path, results: Sequence[SuiteResult]) -> None:
    """Replaces the results of the file's tests."""
    new = {result.test: result.outcome for result in results if result.outcome != "not applicable"}
    kept = _read_vllm_results(path) | {test: outcome for test, outcome in new.items() if "::" in test}
    path.write_text(json.dumps(dict(sorted(kept.items())), indent=0) + "\n")


if __name__ == "__main__":
    main()
