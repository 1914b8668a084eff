"""Measures faulty starts: from exec to exit, and the lines printed.

`.venv/bin/python -m tests.vllm_engine.preflight.measure [--rounds 3] [NAME ...]` prints a table; the first
round of all warms the caches and is not counted.
"""

import argparse
import os
import statistics
import subprocess
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

from tests.peer_vllm import PYTHON, ROOT
from tests.ports import free_port
from tests.vllm_engine.preflight.faulty_starts import FAULTY_STARTS, FaultyStart
from tests.vllm_engine.preflight.start_folders import StartFolders

_LAST_LINES = 3


class Measured(NamedTuple):
    """One faulty start."""

    seconds: float
    num_lines: int
    exit_code: int
    tells_cause: bool
    """Whether one of the last three lines has the expected message."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME")
    parser.add_argument("--rounds", type=int, default=3)
    given = parser.parse_args()
    starts = {name: start for name, start in FAULTY_STARTS.items() if not given.names or name in given.names}
    with tempfile.TemporaryDirectory(prefix="faults-") as name:
        folders = StartFolders(Path(name))
        measured = {each: _measure(folders, Path(name), start, given.rounds) for each, start in starts.items()}
    _print(measured)


def _measure(folders: StartFolders, folder: Path, start: FaultyStart, rounds: int) -> list[Measured]:
    _run(folders, folder, start)
    return [_run(folders, folder, start) for _ in range(rounds)]


def _run(folders: StartFolders, folder: Path, start: FaultyStart) -> Measured:
    variables = {name: folders.fill(value) for name, value in start.variables.items()}
    words = [folders.fill(word) for word in start.words]
    command = [PYTHON, "-m", "vllm_cli", "serve", "--engine", "vllm", *words, "--port", str(free_port())]
    environment = os.environ | {"VLLM_CACHE_ROOT": str(folder / "cache"), "PYTHONPATH": str(ROOT)} | variables
    begin = time.perf_counter()
    done = subprocess.run(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, cwd=folder, env=environment, timeout=300
    )
    seconds = time.perf_counter() - begin
    lines = done.stdout.splitlines()
    tells_cause = any(start.message in line for line in lines[-_LAST_LINES:])
    return Measured(seconds, len(lines), done.returncode, tells_cause)


def _print(measured: dict[str, list[Measured]]) -> None:
    for name, rounds in sorted(measured.items(), key=lambda entry: -statistics.median(r.seconds for r in entry[1])):
        median, last = statistics.median(each.seconds for each in rounds), rounds[-1]
        told = "" if last.tells_cause else "  cause not in the last lines"
        print(f"{median:6.2f} s {last.num_lines:4} lines  exit {last.exit_code:3}  {name}{told}")
    all_s = sorted(each.seconds for rounds in measured.values() for each in rounds)
    most = max(each.num_lines for rounds in measured.values() for each in rounds)
    share = sum(seconds <= 0.5 for seconds in all_s) / len(all_s)
    print(
        f"median {statistics.median(all_s):.2f} s, {share:.0%} within 0.5 s, longest {all_s[-1]:.2f} s, ≤ {most} lines"
    )


if __name__ == "__main__":
    main()
