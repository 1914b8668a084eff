"""Fixtures for `run-batch`: a server, and the command as a process."""

import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.http_server import serving
from tests.vllm_cli.batch.batch_server import BatchServer


@pytest.fixture
def server() -> Iterator[BatchServer]:
    with serving(BatchServer()) as running:
        yield running


@pytest.fixture
def start_batch(tmp_path: Path) -> Iterator[Callable[..., "subprocess.Popen[str]"]]:
    """Starts `vllm-cli run-batch` on `in.jsonl` and `out.jsonl` of the test's folder."""
    started: list[subprocess.Popen[str]] = []

    def start(*words: str, output: str = "out.jsonl") -> "subprocess.Popen[str]":
        command = [sys.executable, "-m", "vllm_cli", "run-batch", "-i", str(tmp_path / "in.jsonl")]
        process = subprocess.Popen(
            [*command, "-o", str(tmp_path / output), *words],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        started.append(process)
        return process

    yield start
    for process in started:
        process.kill()
        process.communicate()


@pytest.fixture
def run_batch(start_batch) -> Callable[..., "subprocess.CompletedProcess[str]"]:
    """Runs `vllm-cli run-batch` to its end."""

    def run(*words: str, **options: Any) -> "subprocess.CompletedProcess[str]":
        process = start_batch(*words, **options)
        out, err = process.communicate(timeout=200)
        return subprocess.CompletedProcess(process.args, process.returncode, out, err)

    return run
