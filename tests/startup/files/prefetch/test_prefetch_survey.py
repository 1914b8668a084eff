"""The budget of a prefetch: it reads missing pages that fit into memory, first those that a record names."""

from pathlib import Path

import pytest

from startup.files.prefetch.messages import PrefetchJob
from startup.files.prefetch.process import start_prefetch
from startup.files.prefetch.survey import (
    RESERVE_BYTES,
    Block,
    FileRanges,
    Survey,
    decide,
    read_pages,
    survey_files,
    whole_file,
    write_pages,
)
from tests.support.page_cache import evict, expect_read, resident_bytes

MB = 10**6

_MIB = 1 << 20


def job(*, room_mb: int | None, is_forced: bool = False) -> PrefetchJob:
    """A job with so much memory in addition to the reserve."""
    memory_bytes = None if room_mb is None else RESERVE_BYTES + room_mb * MB
    return PrefetchJob(paths=(), memory_bytes=memory_bytes, is_forced=is_forced)


def survey(*, missing_mb: int, resident_mb: int = 0) -> Survey:
    blocks = tuple(Block("f", i * 10 * MB, 10 * MB, 10 * MB) for i in range(missing_mb // 10))
    return Survey(1, (missing_mb + resident_mb) * MB, resident_mb * MB, 0, blocks, ())


OFF = 0
HUGE = Survey(1, 1 << 60, 0, 0, (Block("f", 0, 1 << 60, 1 << 60),), ())


@pytest.mark.parametrize(
    ("found", "room_mb", "is_forced", "due_mb", "reason"),
    [
        pytest.param(survey(missing_mb=500), 500, False, 500, "None", id="all fits"),
        pytest.param(survey(missing_mb=500, resident_mb=200), 500, False, 300, "300 MB of 500 MB fit", id="resident"),
        pytest.param(survey(missing_mb=500), 200, False, OFF, "200 MB of 500 MB fit", id="less than half"),
        pytest.param(survey(missing_mb=500), 200, True, 200, "200 MB of 500 MB fit", id="less than half, on"),
        pytest.param(survey(missing_mb=500), -100, False, OFF, "0 MB of 500 MB fit", id="no room"),
        pytest.param(survey(missing_mb=500), -100, True, OFF, "0 MB of 500 MB fit", id="no room, on"),
        pytest.param(
            survey(missing_mb=10, resident_mb=9990), 19_000, False, OFF, "99.9% of the bytes are resident", id="1 %"
        ),
        pytest.param(survey(missing_mb=10, resident_mb=9990), 19_000, True, 10, "None", id="1 %, on"),
        pytest.param(
            Survey(0, 0, 0, 0, (), ("f: gone",)), None, False, OFF, "none of the files can be read", id="unreadable"
        ),
        pytest.param(HUGE, None, False, OFF, "fit", id="this machine's memory"),
    ],
)
def test_missing_pages_that_fit_are_read_if_that_helps(found, room_mb, is_forced, due_mb, reason):
    wanted = decide(found, job(room_mb=room_mb, is_forced=is_forced))
    assert reason in str(wanted.reason)
    assert wanted.due_bytes == due_mb * MB
    assert due_mb == OFF or wanted.blocks[0].offset == 0


@pytest.fixture
def library(tmp_path: Path) -> Path:
    path = tmp_path / "library.so"
    path.write_bytes(bytes(8 * _MIB))
    return path


def _record(folder: Path, *files: FileRanges) -> str:
    write_pages(str(folder / "pages.json"), files)
    return str(folder / "pages.json")


def test_a_record_moves_with_its_folder(tmp_path, library):
    folder = tmp_path / "baked"
    folder.mkdir()
    (folder / "code").write_bytes(b"12345")
    _record(folder, whole_file(str(folder / "code")), FileRanges(str(library), 8 * _MIB, ((_MIB, 10),)))
    moved = folder.rename(tmp_path / "moved")
    assert read_pages(str(moved / "pages.json")) == [
        FileRanges(str(moved / "code"), 5, ((0, 5),)),
        FileRanges(str(library), 8 * _MIB, ((_MIB, 10),)),
    ]


def test_files_that_have_changed_are_left_out(tmp_path, library):
    gone = FileRanges(str(tmp_path / "gone"), 1, ((0, 1),))
    assert read_pages(_record(tmp_path, gone, FileRanges(str(library), _MIB, ((0, _MIB),)))) == []


@pytest.mark.parametrize("text", ["", "{}", "[1]", '[["a", 1]]', "null"])
def test_a_damaged_record_is_empty(text, tmp_path):
    (tmp_path / "pages.json").write_text(text)
    assert read_pages(str(tmp_path / "pages.json")) == []


def test_only_the_recorded_parts_are_read(tmp_path, library):
    record = _record(tmp_path, FileRanges(str(library), 8 * _MIB, ((0, _MIB), (6 * _MIB, _MIB))))
    evict(library)
    assert survey_files(PrefetchJob((), record)).due_bytes == 2 * _MIB
    with start_prefetch([], "on", Path(record)) as prefetch:
        report = prefetch.result(60)
    assert (report.state, report.total_bytes) == ("done", 2 * _MIB)
    expect_read(library, 2 * _MIB)
    assert resident_bytes(library) < 6 * _MIB  # with the kernel's read-ahead
