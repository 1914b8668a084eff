"""Runs one file of vLLM's tests in a process of its own, and leaves no process behind."""

import json
import os
import signal
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from tests.vllm_suite.workspace import Workspace

_MARK: Final = "VLLM_SUITE_RUN"
"""A variable that all processes of a run inherit."""
_STOP_TIMEOUT_S: Final = 30
_TEST_TIMEOUT_S: Final = 300


@dataclass(frozen=True)
class SuiteResult:
    """What became of one test."""

    test: str
    outcome: str
    """passed, failed or not applicable."""
    reason: str = ""


class FileRunner:
    """Runs files in any thread; `stop` ends those that run."""

    def __init__(self, workspace: Workspace, *, server: str, timeout_s: float) -> None:
        self._workspace = workspace
        self._server = server
        self._timeout_s = timeout_s
        self._running: set[subprocess.Popen[bytes]] = set()
        self._is_stopped = False

    def run(self, file: str) -> list[SuiteResult]:
        """Runs the file's tests; their output is in the workspace's logs."""
        log = self._workspace.logs / f"{self._server}-{file.removeprefix('tests/entrypoints/').replace('/', '-')}.log"
        results = log.with_suffix(".jsonl")
        results.unlink(missing_ok=True)
        mark = f"{os.getpid()}-{time.monotonic_ns()}"
        process = self._start(file, log, {"VLLM_SUITE_RESULTS": str(results), _MARK: mark})
        problem = ""
        try:
            process.wait(self._timeout_s)
        except subprocess.TimeoutExpired:
            problem = f"the file's tests took longer than {self._timeout_s:.0f} s"
        finally:
            _end(process, mark)
            self._running.discard(process)
        found = _read_results(results)
        if problem or (not found and process.returncode != 0):
            found.append(SuiteResult(file, "failed", problem or f"pytest exited with {process.returncode}, see {log}"))
        return found

    def stop(self) -> None:
        """Ends all processes; the files' results are incomplete."""
        self._is_stopped = True
        for process in self._running.copy():
            process.terminate()

    def _start(self, file: str, log: Path, variables: dict[str, str]) -> "subprocess.Popen[bytes]":
        options = ("-p", "vllm_suite_plugin", "-p", "no:cacheprovider", "-q", "-rA", "--timeout", str(_TEST_TIMEOUT_S))
        with log.open("w") as output:
            process = subprocess.Popen(
                [self._workspace.python, "-m", "pytest", *options, file],
                cwd=self._workspace.source,
                env=self._workspace.environment(self._server) | variables,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
            )
        self._running.add(process)
        if self._is_stopped:
            process.terminate()
        return process


def _read_results(path: Path) -> list[SuiteResult]:
    """The last result of each test counts."""
    lines = path.read_text().splitlines() if path.exists() else []
    results = [SuiteResult(**json.loads(line)) for line in lines]
    return list({result.test: result for result in results}.values())


def _end(process: "subprocess.Popen[bytes]", mark: str) -> None:
    """The tests stop their servers when their process is told to end; what remains after that is killed."""
    if process.poll() is None:
        process.terminate()
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
