"""Runs a command, and stops random processes of it for short random times, as happens on a busy machine.

    python -m tools.random_stops [--seed N] [--most-ms MS] [--every-ms MS] -- COMMAND...

A test that fails with this tool can also fail elsewhere by chance. One side of a race may be late, a time-out
may be too short, or a process may exit between two reads. Processes that a test itself stops stay stopped.
"""

import argparse
import os
import random
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import psutil

_AT_REST = (psutil.STATUS_STOPPED, psutil.STATUS_TRACING_STOP, psutil.STATUS_ZOMBIE)


def main() -> int:
    """Runs the command. Returns its exit code, or 128 + N after signal N."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--most-ms", type=float, default=250, help="longest stop; the average is a quarter of it")
    parser.add_argument("--every-ms", type=float, default=30, help="average time between two stops")
    parser.add_argument("command", nargs="+")
    options = parser.parse_args()
    choice = random.Random(options.seed)
    num_stops = 0
    with subprocess.Popen(options.command) as command:
        while command.poll() is None:
            time.sleep(choice.uniform(0, 2 * options.every_ms) / 1000)
            stop_s = min(choice.expovariate(4), 1.0) * options.most_ms / 1000
            num_stops += _stop_one(command.pid, choice, stop_s)
    print(f"random_stops: {num_stops} stops", file=sys.stderr)
    code = command.returncode
    return code if code >= 0 else 128 - code


def _stop_one(root_pid: int, choice: random.Random, stop_s: float) -> bool:
    """Stops one process for this time. Returns False if the chosen process could not be stopped."""
    with suppress(psutil.Error, ProcessLookupError, FileNotFoundError):
        root = psutil.Process(root_pid)
        victim = choice.choice([root, *root.children(recursive=True)])
        if victim.status() in _AT_REST:
            return False
        os.kill(victim.pid, signal.SIGSTOP)
        try:
            time.sleep(stop_s)
        finally:
            if not _has_second_stop(victim.pid):
                os.kill(victim.pid, signal.SIGCONT)
        return True
    return False


def _has_second_stop(pid: int) -> bool:
    """Whether a test has also stopped the process. The test's signal is then still pending."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    fields = {name: value.split() for name, _, value in (line.partition(":") for line in lines)}
    return fields["State"][0] == "T" and bool(int(fields["ShdPnd"][0], 16) >> (signal.SIGSTOP - 1) & 1)


if __name__ == "__main__":
    sys.exit(main())
