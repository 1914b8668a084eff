"""Only terminals get the live line. Without a terminal, a long phase is one line in the log."""

import io
import logging
import os
import pty
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from threading import Event
from unittest.mock import patch

import pytest

from startup.reports.timeline.live_line import LiveLine, draw_bar
from startup.reports.timeline.progress import LiveProgress, ProgressMeter
from startup.reports.timeline.timeline import PhaseTimeline
from tests.support.waiting import wait_until

_END = b"<that is all>"


@pytest.fixture
def terminal() -> Iterator[tuple[LiveLine, Callable[[], str]]]:
    """A line on a real pseudo-terminal, and a function that reads the terminal."""
    ours, theirs = pty.openpty()
    with os.fdopen(theirs, "w") as stream:
        yield LiveLine(stream), lambda: _read_all(ours, stream.fileno())
    os.close(ours)


def _read_all(ours: int, theirs: int) -> str:
    """Reads all that was written so far. The terminal passes it on later, in pieces and in order."""
    os.write(theirs, _END)
    received = b""
    while not received.endswith(_END):
        received += os.read(ours, 65536)
    return received.removesuffix(_END).decode()


def test_on_a_terminal_the_line_is_replaced(terminal):
    line, read = terminal
    line.show("one")
    line.show("two")
    line.close()
    assert read() == "\r\x1b[Kone\r\x1b[Ktwo\r\x1b[K"
    line.show("x" * 10_000)
    assert len(read()) < 500, "a line that is too long is cut off"


def test_nothing_is_written_to_a_file(tmp_path):
    with (tmp_path / "log").open("w") as stream:
        line = LiveLine(stream)
        line.show("one")
        line.close()
    assert (tmp_path / "log").read_text() == ""


def test_the_line_is_erased_before_a_log_record_is_written(terminal):
    line, read = terminal
    handler = logging.StreamHandler(line._stream)
    line.erase_for(handler)
    line.show("progress")
    handler.handle(logging.makeLogRecord({"msg": "record"}))
    assert read() == "\r\x1b[Kprogress\r\x1b[Krecord\r\n"


def test_a_process_forked_while_a_line_is_written_can_log(terminal):
    line, _ = terminal
    is_held, is_done = Event(), Event()

    def write() -> None:
        with line._lock:
            is_held.set()
            is_done.wait()

    with ThreadPoolExecutor(1) as pool:
        pool.submit(write)
        is_held.wait()
        child = os.fork()
        if not child:
            os._exit(0 if line._lock.acquire(timeout=5) else 1)
        is_done.set()
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def test_a_closed_terminal_is_no_error():
    ours, theirs = pty.openpty()
    stream = os.fdopen(theirs, "w")
    line = LiveLine(stream)
    os.close(ours)
    line.show("one")
    assert not line.is_on
    line.show("two")
    line.close()
    with suppress(OSError):
        stream.close()


@pytest.mark.parametrize(
    ("progress", "expected"),
    [(0.0, "[" + "-" * 20 + "]   0%"), (0.5, "[" + "#" * 10 + "-" * 10 + "]  50%"), (1.0, "[" + "#" * 20 + "] 100%")],
)
def test_the_bar_is_as_full_as_the_progress(progress, expected):
    assert draw_bar(progress) == expected


@pytest.fixture(autouse=True)
def no_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stderr", io.StringIO())


@pytest.fixture
def timeline() -> PhaseTimeline:
    return PhaseTimeline.from_process_start()


def test_a_long_phase_is_logged_once_while_it_runs(timeline, caplog):
    caplog.set_level(logging.INFO)
    meter = ProgressMeter(timeline)
    with LiveProgress(meter, long_phase_s=0.02):
        meter.detail = "3 of 7 files"
        with timeline.span("resolve_model"):
            wait_until(lambda: "resolve model: 3 of 7 files" in caplog.text)
        meter.detail = ""
        with timeline.span("import_server"):
            wait_until(lambda: "import server" in caplog.text)
        with timeline.span("resolve_model"), timeline.span("another"):
            wait_until(lambda: "another" in caplog.text)
    phases = [record.getMessage().partition("s: ")[2] for record in caplog.records]
    assert [phase for phase in phases if phase != "starting"] == [
        "resolve model: 3 of 7 files",
        "import server",
        "another",
    ]


def test_short_phases_are_not_logged(timeline, caplog):
    caplog.set_level(logging.INFO)
    meter = ProgressMeter(timeline)
    with patch.object(meter, "read", wraps=meter.read) as read, LiveProgress(meter, long_phase_s=600):
        wait_until(lambda: read.call_count > 2)
    assert caplog.records == []


def test_the_first_line_of_the_log_ends_with_the_note(timeline, caplog):
    caplog.set_level(logging.INFO)
    with LiveProgress(ProgressMeter(timeline), "; a note", long_phase_s=0.02):
        for name in ("resolve_model", "import_server"):
            with timeline.span(name):
                wait_until(lambda name=name: name.replace("_", " ") in caplog.text)
    first, *others = [record.getMessage() for record in caplog.records]
    assert first.endswith("; a note")
    assert others and "a note" not in "".join(others)
