"""Parts of files that a record names are read first; whatever is wrong with a record is harmless."""

from pathlib import Path

import pytest

from startup.prefetch.options import PrefetchOptions
from startup.prefetch.process import start_prefetch
from startup.prefetch.survey import FileRanges, read_pages, survey_files, whole_file, write_pages
from tests.page_cache import evict, expect_resident, repeated_if_pages_are_lost, resident_bytes

_MIB = 1 << 20


@pytest.fixture
def library(tmp_path: Path) -> Path:
    path = tmp_path / "library.so"
    path.write_bytes(bytes(8 * _MIB))
    return path


def _record(folder: Path, *files: FileRanges) -> str:
    write_pages(str(folder / "pages.json"), files)
    return str(folder / "pages.json")


def test_a_record_moves_with_its_folder(tmp_path: Path, library: Path) -> None:
    folder = tmp_path / "baked"
    folder.mkdir()
    (folder / "code").write_bytes(b"12345")
    _record(folder, whole_file(str(folder / "code")), FileRanges(str(library), 8 * _MIB, ((_MIB, 10),)))
    moved = folder.rename(tmp_path / "moved")
    assert read_pages(str(moved / "pages.json")) == [
        FileRanges(str(moved / "code"), 5, ((0, 5),)),
        FileRanges(str(library), 8 * _MIB, ((_MIB, 10),)),
    ]


def test_files_that_have_changed_are_left_out(tmp_path: Path, library: Path) -> None:
    gone = FileRanges(str(tmp_path / "gone"), 1, ((0, 1),))
    record = _record(tmp_path, gone, FileRanges(str(library), _MIB, ((0, _MIB),)))
    assert read_pages(record) == []


@pytest.mark.parametrize("text", ["", "{}", "[1]", '[["a", 1]]', "null"])
def test_a_damaged_record_is_empty(text: str, tmp_path: Path) -> None:
    (tmp_path / "pages.json").write_text(text)
    assert read_pages(str(tmp_path / "pages.json")) == []


@repeated_if_pages_are_lost
def test_only_the_recorded_parts_are_read(tmp_path: Path, library: Path) -> None:
    record = _record(tmp_path, FileRanges(str(library), 8 * _MIB, ((0, _MIB), (6 * _MIB, _MIB))))
    evict(library)
    assert survey_files([], _MIB, record).due_bytes == 2 * _MIB
    with start_prefetch([], PrefetchOptions(mode="on"), Path(record)) as prefetch:
        report = prefetch.result(60)
    assert report is not None
    assert (report.state, report.total_bytes) == ("done", 2 * _MIB)
    for offset in (0, 6 * _MIB):
        assert resident_bytes(library, offset, _MIB) == _MIB
    assert resident_bytes(library) < 6 * _MIB  # with the kernel's read-ahead
    expect_resident(library, 2 * _MIB)
