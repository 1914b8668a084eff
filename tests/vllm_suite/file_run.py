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


def run_file(workspace: Workspace, file: str, *, server: str, timeout_s: float) -> list[SuiteResult]:
    """Runs the file's tests; its output is in the workspace's logs."""
    log = workspace.logs / f"{server}-{file.removeprefix('tests/entrypoints/').replace('/', '-')}.log"
    results = log.with_suffix(".jsonl")
    results.unlink(missing_ok=True)
    mark = f"{os.getpid()}-{time.monotonic_ns()}"
    variables = {**workspace.environment(server), "VLLM_SUITE_RESULTS": str(results), _MARK: mark}
    command = [workspace.python, "-m", "pytest", "-p", "vllm_suite_plugin", "-p", "no:cacheprovider", "-q", "-rA"]
    with log.open("w") as output:
        process = subprocess.Popen(
            [*command, "--timeout", str(_TEST_TIMEOUT_S), file],
            cwd=workspace.source,
            env=variables,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
        )
        try:
            process.wait(timeout_s)
            problem = ""
        except subprocess.TimeoutExpired:
            problem = f"the file's tests took longer than {timeout_s:.0f} s"
        finally:
            _end(process, mark)
    found = _read_results(results)
    if problem or (not found and process.returncode != 0):
        found.append(SuiteResult(file, "failed", problem or f"pytest exited with {process.returncode}, see {log}"))
    return found


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
