"""A start of two real processes, one waiting for the other; prints its report. Run by test_timeline.py."""

import multiprocessing
import sys
import time
from multiprocessing.connection import Connection

from server.machine.processes import process_start_ns
from startup.timeline.report import StartFacts, build_report
from startup.timeline.timeline import PhaseTimeline

_BEGIN_NS = time.monotonic_ns()


def child(connection: Connection) -> None:
    begin = time.monotonic_ns()
    time.sleep(0.3)
    connection.recv()
    spans = [("interpreter", process_start_ns(), begin), ("sleep", begin, time.monotonic_ns())]
    connection.send(spans)


def main() -> None:
    timeline = PhaseTimeline.from_process_start()
    with timeline.span("start_child"):
        ours, theirs = multiprocessing.Pipe()
        process = multiprocessing.get_context("spawn").Process(target=child, args=(theirs,))
        process.start()
    with timeline.span("busy_meanwhile"):
        time.sleep(0.1)
    with timeline.span("wait_for_child", waits_for="child"):
        ours.send("waiting")  # without it, on a busy machine, the child might end before the wait begins
        spans = ours.recv()
    with timeline.span("after_the_child"):
        time.sleep(0.05)
    timeline.finish()
    timeline.add("child", spans)
    process.join()
    sys.stdout.write(build_report(timeline, StartFacts(model="none", start_method="spawn")).to_json())


if __name__ == "__main__":
    main()
