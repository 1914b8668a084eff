"""Ending a server that a test started, with all its processes."""

import signal
import subprocess
from collections.abc import Iterable

import psutil

GONE_S = 60.0


def end_server(
    process: "subprocess.Popen[bytes]", family: Iterable[psutil.Process], *, left_s: float = GONE_S
) -> list[psutil.Process]:
    """Asks the process to end, kills it where it does not, and returns those of its family that were left and killed.

    Args:
        process: the server's own; it may have ended.
        family: it and all below it, as they were while it ran.
        left_s: how long the others may take to end after it.
    """
    if process.poll() is None:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(GONE_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
    _, left = psutil.wait_procs(family, timeout=left_s)
    for other in left:
        other.kill()
    return left
