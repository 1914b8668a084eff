"""Lines of a log that is read in pieces."""

import io
import tracemalloc

import pytest

from startup.causes import log_line
from startup.causes.first_cause import find_cause
from startup.causes.log_line import LONGEST_LINE, read_lines


@pytest.mark.parametrize("chunk", [1, 2, 3, 5, 1000])
def test_lines_do_not_depend_on_the_pieces(monkeypatch: pytest.MonkeyPatch, chunk: int) -> None:
    monkeypatch.setattr(log_line, "_CHUNK", chunk)
    assert [*read_lines(io.BytesIO(b"one\n\nt\xc3\xa9n\n10%\r20%\rdone\nlast"))] == [
        "one", "", "tén", "10%\r", "20%\r", "done", "last",
    ]  # fmt: skip


def test_bytes_that_are_not_text_are_replaced() -> None:
    assert [*read_lines(io.BytesIO(b"a\xff\xfeb\n"))] == ["a\ufffd\ufffdb"]


def test_windows_line_ends_and_progress_bars_do_not_change_the_number_of_a_line() -> None:
    log = b"Loading\r\n10%\r20%\r30%\nTraceback (most recent call last):\r\n  x\r\nValueError: wrong\r\n"
    cause = find_cause(read_lines(io.BytesIO(log)))
    assert cause is not None
    assert cause.line == 5


def test_a_line_without_end_takes_bounded_memory() -> None:
    class Endless(io.RawIOBase):
        """Sixty-four megabytes without a line break."""

        left = 64 << 20

        def read(self, size: int = -1) -> bytes:
            size = min(size, self.left)
            self.left -= size
            return b"x" * size

    tracemalloc.start()
    [line] = read_lines(Endless())  # type: ignore[arg-type]
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(line) == LONGEST_LINE
    assert most < 4 << 20
