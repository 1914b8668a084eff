"""Runs a command and stops random processes below it for short random times, as a busy machine does.

    python -m tools.random_stops [--seed N] [--most-ms MS] [--every-ms MS] -- COMMAND...

A test that fails under it fails by chance elsewhere: one side of a race is late, a time-out is too short, a
process has exited between two reads. Processes that are stopped already stay stopped: a test has stopped
them.
"""

import argparse
import os
import random
import signal
import subprocess
import sys
import time
from contextlib import suppress

import psutil

_AT_REST = (psutil.STATUS_STOPPED, psutil.STATUS_TRACING_STOP, psutil.STATUS_ZOMBIE)


def main() -> int:
    """Returns the command's exit code, 128 + N after signal N."""
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
    """Stops one process and continues it; returns whether there was one to stop."""
    with suppress(psutil.Error, ProcessLookupError):
        root = psutil.Process(root_pid)
        victim = choice.choice([root, *root.children(recursive=True)])
        if victim.status() in _AT_REST:
            return False
        os.kill(victim.pid, signal.SIGSTOP)
        try:
            time.sleep(stop_s)
        finally:
            os.kill(victim.pid, signal.SIGCONT)
        return True
    return False


if __name__ == "__main__":
    sys.exit(main())
