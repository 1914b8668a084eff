"""Archives of compiled models: unpacked files equal the packed files, and invalid archives are rejected."""

import os
import random
import stat
import tracemalloc
from io import BytesIO
from pathlib import Path
from zipfile import ZIP_LZMA, ZIP_STORED, ZipFile

import pytest

from startup.compiled_models.archive import MANIFEST, ArchiveError, read_record, unpack, write_archive
from startup.compiled_models.record import CompiledModel, FileFacts
from tests.startup.compiled_models.conftest import FILES, RECORD, archive, deflated, facts, save_archive, zipped
from tests.support.growth import count_calls

GiB = 1 << 30


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    path = tmp_path / "unpacked"
    path.mkdir(mode=0o700)
    return path


def read_tree(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def unpacked(content: bytes, folder: Path, max_bytes: int = GiB) -> dict[str, bytes]:
    unpack(BytesIO(content), folder, CompiledModel, max_bytes=max_bytes)
    return read_tree(folder)


def test_files_and_record_are_those_that_were_packed(tmp_path, folder):
    record = save_archive(tmp_path / "a.zip")
    assert {name: facts.size for name, facts in record.files.items()} == {name: len(FILES[name]) for name in FILES}
    with (tmp_path / "a.zip").open("rb") as file:
        assert read_record(file, CompiledModel) == record
        assert unpack(file, folder, CompiledModel, max_bytes=record.num_bytes) == record
    assert read_tree(folder) == FILES
    modes = {stat.S_IMODE(path.stat().st_mode) for path in folder.rglob("*") if path.is_file()}
    assert (modes, {stat.S_IMODE(path.stat().st_mode) for path in folder.glob("**/")}) == ({0o600}, {0o700})
    with ZipFile(tmp_path / "a.zip") as usual:
        assert usual.testzip() is None
        assert usual.namelist() == [*sorted(FILES), MANIFEST]


def test_files_keep_their_times_of_change(tmp_path, folder):
    """With other times, ninja would compile the files again."""
    times = dict(zip(sorted(FILES), (1, 1_790_000_000, 1_790_000_003), strict=True))
    save_archive(tmp_path / "a.zip")
    sources = {name: tmp_path / "a.files" / name for name in FILES}
    for name, time in times.items():
        os.utime(sources[name], (time, time))
    write_archive(tmp_path / "b.zip", RECORD, sources)
    begin_s = folder.stat().st_mtime
    with (tmp_path / "b.zip").open("rb") as file:
        unpack(file, folder, CompiledModel, max_bytes=GiB)
    first, *others = ((folder / name).stat().st_mtime for name in sorted(FILES))
    assert others == [1_790_000_000, 1_790_000_002]
    assert first >= begin_s - 1, "before 1980, which the archive cannot tell"


@pytest.mark.parametrize("date", [(2026, 0, 1, 0, 0, 0), (2026, 15, 31, 31, 63, 62)])
def test_a_date_that_cannot_be_is_refused(date, folder):
    file = BytesIO(archive())
    with ZipFile(file, "a") as whole:
        whole.getinfo("vllm/a").date_time = date
        whole.writestr("x", "")  # so that the directory is written anew
    with pytest.raises(ArchiveError, match="has no valid date"):
        unpacked(file.getvalue(), folder)


def test_an_archive_depends_on_its_files_only(tmp_path):
    save_archive(tmp_path / "a.zip")
    sources = {name: tmp_path / "a.files" / name for name in reversed(FILES)}
    write_archive(tmp_path / "b.zip", RECORD, sources)
    assert (tmp_path / "a.zip").read_bytes() == (tmp_path / "b.zip").read_bytes()


def test_links_pipes_folders_and_missing_files_are_left_out(tmp_path):
    (tmp_path / "file").write_bytes(b"x")
    (tmp_path / "link").symlink_to("file")
    (tmp_path / "folder").mkdir()
    os.mkfifo(tmp_path / "pipe")
    sources = {f"vllm/{name}": tmp_path / name for name in ("file", "link", "folder", "pipe", "missing")}
    assert list(write_archive(tmp_path / "a.zip", RECORD, sources).files) == ["vllm/file"]


@pytest.mark.parametrize(
    "name",
    ["../a", "a/../b", "/a", "a/", "a//b", "a\\b", "a\0b", "a\nb", MANIFEST, "é" * 128, "a/" * 513, "\udc80"],
)
def test_a_name_that_could_not_be_read_is_not_written(tmp_path, name):
    with pytest.raises(ValueError, match="allowed|surrogates"):
        write_archive(tmp_path / "a.zip", RECORD, {name: tmp_path / "file"})


def test_files_too_large_for_an_archive_are_refused(tmp_path):
    with (tmp_path / "file").open("wb") as file:
        file.truncate(3 * GiB)
    with pytest.raises(ValueError, match="cannot be written: .* has 3221225472 bytes"):
        write_archive(tmp_path / "a.zip", RECORD, {"vllm/file": tmp_path / "file"})


HOSTILE = {
    "missing from the archive": (lambda: archive({}, files=facts({"vllm/a": b"content"})), "it has no 'vllm/a'"),
    "other size": (lambda: archive(files=facts({"vllm/a": b"contents"})), "not have the SHA-256"),
    "smaller size": (lambda: archive(files=facts({"vllm/a": b""})), "more than 0"),
    "other content": (lambda: archive(files=facts({"vllm/a": b"CONTENT"})), "not have the SHA-256"),
    "named as the manifest": (lambda: archive(files={MANIFEST: FileFacts(1, "")}), "not an allowed name"),
    "parent": (lambda: archive({"vllm/../../a": b"content"}), "not an allowed name"),
    "file and folder": (lambda: archive(dict.fromkeys(("vllm/a", "vllm/a/b"), b"content")), "both a file and a folder"),
    "stored": (lambda: archive(method=ZIP_STORED), "not deflated"),
    "LZMA": (lambda: archive(method=ZIP_LZMA), "not deflated"),
    "damaged": (lambda: archive().replace(deflated(b"content"), b"\xff" * len(deflated(b"content"))), "is damaged"),
    "above the limit": (lambda: archive({"a": bytes(600_000), "b": bytes(600_000)}), "more than 1000000"),
    "something else": (lambda: b"#!/bin/sh\n" * 9, "not a zip file"),
    "no members": (lambda: zipped({}), "it has no 'manifest.json'"),
    "too many files": (lambda: archive(files={f"{n}": FileFacts(0, "") for n in range(7)}), "7 files, more than 6"),
    "large manifest": (lambda: zipped({MANIFEST: bytes(33 << 20)}), "more than 33554432"),
    "no JSON": (lambda: zipped({MANIFEST: b"{"}), "record of a compiled model is not valid"),
    "nested JSON": (lambda: zipped({MANIFEST: b'{"factors": {"env": {"a": ' + b"[" * 1_000_000}), "200 levels"),
    "other format": (lambda: archive(format=9), "format is 9"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_archive_is_refused_in_one_line(name, folder, tmp_path, monkeypatch):
    monkeypatch.setattr("startup.compiled_models.archive.MOST_FILES", 6)
    build, message = HOSTILE[name]
    with pytest.raises(ArchiveError) as caught:
        unpacked(build(), folder, max_bytes=1_000_000)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not set(read_tree(tmp_path)) - {"unpacked/a", "unpacked/vllm/a"}


@pytest.mark.thorough
def test_a_bomb_is_not_inflated_beyond_its_size(folder):
    content = archive({"vllm/a": bytes(50_000_000)}, files=facts({"vllm/a": bytes(10)}))
    in_directory = content.rfind(b"PK\1\2", 0, content.rfind(b"PK\1\2"))
    wrong_size = bytearray(content)
    wrong_size[in_directory + 24 : in_directory + 28] = (10).to_bytes(4, "little")
    with pytest.raises(ArchiveError):
        unpacked(bytes(wrong_size), folder)
    assert sum(map(len, read_tree(folder).values())) <= 10


def test_a_cut_archive_is_refused_wherever_it_is_cut(tmp_path, folder):
    whole = archive({"vllm/a": os.urandom(300)})
    for end in range(len(whole)):
        with pytest.raises(ArchiveError):
            unpacked(whole[:end], folder)
    assert read_tree(folder) == {}


@pytest.mark.thorough
def test_a_changed_byte_is_noticed_or_changes_nothing(tmp_path):
    files = {"vllm/a": b"print(1)\n" * 40, "triton/b": os.urandom(200)}
    whole = archive(files)
    source = random.Random(34)
    for number in range(500):
        changed = bytearray(whole)
        changed[source.randrange(len(whole))] ^= 1 << source.randrange(8)
        folder = tmp_path / str(number)
        folder.mkdir()
        try:
            assert unpacked(bytes(changed), folder) == files
        except ArchiveError:
            assert all(content in files.values() or len(content) < 400 for content in read_tree(folder).values())


def test_files_are_never_written_over_or_through_links(tmp_path, folder):
    (tmp_path / "target").write_bytes(b"")
    (folder / "a").symlink_to(tmp_path / "target")
    with pytest.raises(FileExistsError):
        unpacked(archive({"a": b"content"}), folder)
    assert (tmp_path / "target").read_bytes() == b""


@pytest.mark.thorough
def test_a_large_file_is_never_in_memory(tmp_path, folder):
    with (tmp_path / "file").open("wb") as file:
        file.truncate(64 << 20)
    tracemalloc.start()
    try:
        write_archive(tmp_path / "a.zip", RECORD, {"vllm/a": tmp_path / "file"})
        with (tmp_path / "a.zip").open("rb") as file:
            unpack(file, folder, CompiledModel, max_bytes=GiB)
        assert tracemalloc.get_traced_memory()[1] < 8 << 20
    finally:
        tracemalloc.stop()


@pytest.mark.thorough
def test_the_number_of_calls_is_linear_in_the_number_of_files(tmp_path):
    def num_calls(num_files: int) -> int:
        content = archive({f"vllm/{'d/' * (number % 50)}{number}": b"content" for number in range(num_files)})
        folder = tmp_path / str(num_files)
        folder.mkdir()
        return count_calls(lambda: unpack(BytesIO(content), folder, CompiledModel, max_bytes=GiB))

    assert num_calls(400) < 2.2 * num_calls(200)
