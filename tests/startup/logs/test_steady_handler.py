"""Log lines that cannot be written are counted, and the count is logged with the next line that can."""

import io
import logging

import pytest

from startup.logs.setup import SteadyHandler


class _Disk(io.StringIO):
    """Raises on each write while it is full."""

    is_full = False

    def write(self, text: str) -> int:
        if self.is_full:
            raise OSError(28, "No space left on device")
        return super().write(text)


@pytest.fixture
def disk() -> _Disk:
    return _Disk()


@pytest.fixture
def handler(disk: _Disk) -> SteadyHandler:
    return SteadyHandler(disk)


def _log(handler: SteadyHandler, message: str, *args: object) -> None:
    handler.handle(logging.LogRecord("steady", logging.INFO, __file__, 1, message, args, None))


def test_lost_lines_are_counted_until_the_stream_can_be_written(
    disk: _Disk, handler: SteadyHandler, capsys: pytest.CaptureFixture[str]
) -> None:
    _log(handler, "before")
    disk.is_full = True
    for number in range(3):
        _log(handler, "lost %d", number)
    disk.is_full = False
    _log(handler, "after")
    _log(handler, "and later")
    assert disk.getvalue().splitlines() == [
        "before",
        "3 lines of this log were lost: standard error could not be written (No space left on device)",
        "after",
        "and later",
    ]
    assert capsys.readouterr().err == ""


def test_an_error_in_the_program_is_still_shown(
    disk: _Disk, handler: SteadyHandler, capsys: pytest.CaptureFixture[str]
) -> None:
    _log(handler, "%d", "no number")
    assert "TypeError" in capsys.readouterr().err
    assert disk.getvalue() == ""
