"""Runs files of vLLM's tests in processes of their own, and leaves no process behind.

One process runs several files, because importing vLLM takes longer than most files. Where it ends early,
another one runs the files that it has not begun.
"""

import json
import os
import signal
import subprocess
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from tools.vllm_suite.workspace import Workspace

_MARK: Final = "VLLM_SUITE_RUN"
"""A variable that all processes of a run inherit."""
_STOP_TIMEOUT_S: Final = 30
_TEST_TIMEOUT_S: Final = 300
_POLL_S: Final = 0.5
_BEGIN, _END = "begin", "end"
"""What the plugin records before and after the tests of a file."""


@dataclass(frozen=True)
class SuiteResult:
    """What became of one test."""

    test: str
    outcome: str
    """passed, failed or not applicable."""
    reason: str = ""

    @property
    def file(self) -> str:
        """The file of the test."""
        return self.test.partition("::")[0]


class FileRunner:
    """Runs files in any thread; `stop` ends all of them."""

    def __init__(self, workspace: Workspace, *, server: str, timeout_s: float) -> None:
        self._workspace = workspace
        self._server = server
        self._timeout_s = timeout_s
        self._is_stopped = False

    def run(self, files: Sequence[str], name: str) -> Iterator[tuple[str, list[SuiteResult]]]:
        """Yields each file with its results once its tests have ended; logs are named so."""
        remaining = list(files)
        number = 0
        while remaining and not self._is_stopped:
            number += 1
            for file, found in self._run_process(remaining, self._workspace.logs / f"{name}-{number}.log"):
                remaining.remove(file)
                yield file, found

    def stop(self) -> None:
        """Ends all processes; the files that they run have incomplete results."""
        self._is_stopped = True

    def _run_process(self, files: Sequence[str], log: Path) -> Iterator[tuple[str, list[SuiteResult]]]:
        """Yields files until all have run or the process has ended, the one that ended it included."""
        records = _Records(log.with_suffix(".jsonl"))
        mark = f"{os.getpid()}-{time.monotonic_ns()}"
        process = self._start(files, log, {"VLLM_SUITE_RESULTS": str(records.path), _MARK: mark})
        problem = ""
        try:
            while process.poll() is None and not self._is_stopped:
                yield from records.read_ended_files()
                if time.monotonic() - records.begun_s > self._timeout_s:
                    problem = f"the file's tests took longer than {self._timeout_s:.0f} s"
                    break
                time.sleep(_POLL_S)
        finally:
            _end(process, mark)
        yield from records.read_ended_files()
        current = records.current or next((file for file in files if file not in records.ended), None)
        if current is not None:
            why = problem or f"pytest exited with {process.returncode}, see {log}"
            yield current, [*records.of(current), SuiteResult(current, "failed", why)]

    def _start(self, files: Sequence[str], log: Path, variables: dict[str, str]) -> "subprocess.Popen[bytes]":
        options = ("-p", "vllm_suite_plugin", "-p", "no:cacheprovider", "--continue-on-collection-errors", "-q", "-rA")
        with log.open("w") as output:
            return subprocess.Popen(
                [self._workspace.python, "-m", "pytest", *options, "--timeout", str(_TEST_TIMEOUT_S), *files],
                cwd=self._workspace.source,
                env=self._workspace.environment(self._server) | variables,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
            )


class _Records:
    """The lines that the plugin has written so far."""

    def __init__(self, path: Path) -> None:
        path.unlink(missing_ok=True)
        self.path = path
        self.current: str | None = None
        """The file whose tests run."""
        self.begun_s = time.monotonic()
        """When the current file began."""
        self.ended: set[str] = set()
        self._results: dict[str, SuiteResult] = {}
        self._num_read = 0

    def of(self, file: str) -> list[SuiteResult]:
        """The results of a file; the last one of each test counts."""
        return [result for result in self._results.values() if result.file == file]

    def read_ended_files(self) -> Iterator[tuple[str, list[SuiteResult]]]:
        """Reads new lines, and yields the files that have ended."""
        lines = self.path.read_text().splitlines() if self.path.exists() else []
        new, self._num_read = lines[self._num_read :], len(lines)
        for line in new:
            result = SuiteResult(**json.loads(line))
            if result.outcome == _BEGIN:
                self.current, self.begun_s = result.test, time.monotonic()
            elif result.outcome == _END:
                self.current = None
                self.ended.add(result.test)
                yield result.test, self.of(result.test)
            else:
                self._results[result.test] = result


def _end(process: "subprocess.Popen[bytes]", mark: str) -> None:
    """The tests stop their servers when their process is interrupted; what remains after that is killed.

    SIGTERM would only fail the test that runs.
    """
    if process.poll() is None:
        process.send_signal(signal.SIGINT)
        try:
            process.wait(_STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
    for pid in _marked_processes(mark):
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            continue


def _marked_processes(mark: str) -> list[int]:
    variable = f"{_MARK}={mark}".encode()
    found = []
    for entry in Path("/proc").iterdir():
        try:
            if entry.name.isdigit() and variable in (entry / "environ").read_bytes().split(b"\0"):
                found.append(int(entry.name))
        except OSError:
            continue
    return found
