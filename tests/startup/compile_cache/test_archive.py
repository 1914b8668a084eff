"""Archives of compiled models: what is packed is unpacked, and nothing else is accepted."""

import os
import random
import stat
import tracemalloc
from io import BytesIO
from pathlib import Path
from zipfile import ZipFile

import pytest

from startup.compile_cache import archive as module
from startup.compile_cache.archive import MANIFEST, ArchiveError, read_record, unpack, write_archive
from tests.growth import growth
from tests.startup.compile_cache.inputs import FILES, RECORD, Raw, archive, good, manifest, raw_zip, save_archive

GiB = 1 << 30


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    path = tmp_path / "unpacked"
    path.mkdir(mode=0o700)
    return path


def read_tree(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def unpacked(content: bytes, folder: Path, max_bytes: int = GiB) -> dict[str, bytes]:
    unpack(BytesIO(content), folder, max_bytes=max_bytes)
    return read_tree(folder)


def test_files_and_record_are_those_that_were_packed(tmp_path, folder):
    record = save_archive(tmp_path / "a.zip")
    assert {name: facts.size for name, facts in record.files.items()} == {name: len(FILES[name]) for name in FILES}
    with (tmp_path / "a.zip").open("rb") as file:
        assert read_record(file) == record
        assert unpack(file, folder, max_bytes=record.num_bytes) == record
    assert read_tree(folder) == FILES
    modes = {stat.S_IMODE(path.stat().st_mode) for path in folder.rglob("*") if path.is_file()}
    assert (modes, {stat.S_IMODE(path.stat().st_mode) for path in folder.glob("**/")}) == ({0o600}, {0o700})
    with ZipFile(tmp_path / "a.zip") as usual:
        assert usual.testzip() is None
        assert usual.namelist() == [*sorted(FILES), MANIFEST]


def test_an_archive_depends_on_its_files_only(tmp_path):
    save_archive(tmp_path / "a.zip")
    os.utime(tmp_path / "a.files/vllm/a/empty", (1, 1))
    save_archive(tmp_path / "b.zip", dict(reversed(FILES.items())))
    assert (tmp_path / "a.zip").read_bytes() == (tmp_path / "b.zip").read_bytes()


def test_links_pipes_folders_and_missing_files_are_left_out(tmp_path):
    (tmp_path / "file").write_bytes(b"x")
    (tmp_path / "link").symlink_to("file")
    (tmp_path / "folder").mkdir()
    os.mkfifo(tmp_path / "pipe")
    sources = {f"vllm/{name}": tmp_path / name for name in ("file", "link", "folder", "pipe", "missing")}
    assert list(write_archive(tmp_path / "a.zip", RECORD, sources).files) == ["vllm/file"]


@pytest.mark.parametrize("name", ["../a", "/a", "a//b", "a\\b", "a\0b", "a\nb", MANIFEST, "a" * 256, "\udc80"])
def test_a_name_that_could_not_be_read_is_not_written(tmp_path, name):
    with pytest.raises(ValueError, match="allowed|surrogates"):
        write_archive(tmp_path / "a.zip", RECORD, {name: tmp_path / "file"})


def test_files_too_large_for_an_archive_are_refused(tmp_path):
    with (tmp_path / "file").open("wb") as file:
        file.truncate(3 * GiB)
    with pytest.raises(ValueError, match="cannot be written: .* has 3221225472 bytes"):
        write_archive(tmp_path / "a.zip", RECORD, {"vllm/file": tmp_path / "file"})


LINK, DEVICE, FOLDER = (kind << 16 for kind in (stat.S_IFLNK | 0o777, stat.S_IFCHR | 0o600, stat.S_IFDIR | 0o700))
HOSTILE = {
    "not in the manifest": (lambda: archive(good(), own_manifest=manifest([])), "files are not those"),
    "missing from the archive": (lambda: raw_zip([manifest([good()])]), "files are not those"),
    "other size": (lambda: archive(good(), own_manifest=manifest([good(content=b"")])), "files are not those"),
    "other content": (lambda: archive(good(), own_manifest=manifest([good(content=b"CONTENT")])), "not the SHA-256"),
    "twice": (lambda: archive(good(), good()), "same name"),
    "two manifests": (lambda: archive(good(MANIFEST), good()), "not an allowed name"),
    "absolute": (lambda: archive(good("/etc/passwd")), "not an allowed name"),
    "parent": (lambda: archive(good("vllm/../../a")), "not an allowed name"),
    "empty part": (lambda: archive(good("vllm//a")), "not an allowed name"),
    "folder's name": (lambda: archive(good("vllm/a/", b"")), "not an allowed name"),
    "backslash": (lambda: archive(good("vllm\\a")), "not an allowed name"),
    "NUL": (lambda: archive(good("vllm/a\0.so")), "not an allowed name"),
    "newline": (lambda: archive(good("vllm/a\nb")), "not an allowed name"),
    "long part": (lambda: archive(good("vllm/" + "é" * 128)), "not an allowed name"),
    "long name": (lambda: archive(good("a/" * 600 + "a")), "not an allowed name"),
    "no UTF-8": (lambda: archive(Raw(b"\xff")), "not UTF-8"),
    "file and folder": (lambda: archive(good("vllm/a"), good("vllm/a/b")), "both a file and a folder"),
    "link": (lambda: archive(good(attributes=LINK)), "not a regular file"),
    "device": (lambda: archive(good(attributes=DEVICE)), "not a regular file"),
    "folder": (lambda: archive(good(attributes=FOLDER)), "not a regular file"),
    "folder of MS-DOS": (lambda: archive(good(attributes=0x10)), "not a regular file"),
    "encrypted": (lambda: archive(good(flags=1)), "encrypted, or not simply deflated"),
    "streamed": (lambda: archive(good(flags=8)), "encrypted, or not simply deflated"),
    "stored": (lambda: archive(good(method=0)), "encrypted, or not simply deflated"),
    "LZMA": (lambda: archive(good(method=14)), "encrypted, or not simply deflated"),
    "overlapping": (lambda: archive(good("a"), good("b", begin=0)), "overlaps"),
    "gap": (lambda: archive(good("a"), good("b", gap=b"PK")), "after a gap"),
    "before it": (lambda: archive(good(gap=b"#!")), "after a gap"),
    "before the directory": (lambda: archive(good(), gap=b"PK"), "belong to no member"),
    "header that is encrypted": (lambda: archive(good(header_flags=1)), "another form than this program writes"),
    "header with extra field": (lambda: archive(good(extra=b"\1\0\4\0abcd")), "overlaps"),
    "header of other name": (lambda: archive(good(header_name=b"vllm/b")), "differs from the directory"),
    "damaged": (lambda: archive(good()).replace(good().packed, b"\xff" * len(good().packed)), "is damaged"),
    "inflates to more": (lambda: archive(good(content=bytes(10_000_000), num_bytes=10)), "not the size"),
    "inflates to less": (lambda: archive(good(num_bytes=10)), "not the size"),
    "more than it inflates": (lambda: archive(good(junk=b"junk")), "not the size"),
    "above the limit": (lambda: archive(good("a", bytes(600_000)), good("b", bytes(600_000))), "more than 1000000"),
    "comment": (lambda: archive(good(), comment=b"hello"), "no end of a zip file"),
    "something else": (lambda: b"#!/bin/sh\n" * 9, "no end of a zip file"),
    "no members": (lambda: raw_zip([]), "0 members"),
    "wrong count": (lambda: archive(good(), count=1), "belong to no member"),
    "counts of ZIP64": (lambda: archive(good(), count=0xFFFF), "65535 members"),
    "too many members": (lambda: raw_zip([good(f"{n}") for n in range(60_002)]), "60002 members"),
    "large directory": (lambda: raw_zip([good(f"{n:060000}") for n in range(300)]), "a directory of 18013800 bytes"),
    "manifest not last": (lambda: raw_zip([manifest([good()]), good()]), "last member is not its manifest"),
    "large manifest": (lambda: raw_zip([good(MANIFEST, bytes(33 << 20))]), "more than 33554432"),
    "no JSON": (lambda: raw_zip([good(MANIFEST, b"{")]), "record of a compiled model is not valid"),
    "nested JSON": (lambda: raw_zip([good(MANIFEST, b'{"factors": {"env": {"a": ' + b"[" * 1_000_000)]), "200 levels"),
    "other format": (lambda: archive(own_manifest=manifest([], format=9)), "format is 9"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_archive_is_refused_in_one_line(name, folder, tmp_path):
    build, message = HOSTILE[name]
    with pytest.raises(ArchiveError) as caught:
        unpacked(build(), folder, max_bytes=1_000_000)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not set(read_tree(tmp_path)) - {"unpacked/a", "unpacked/vllm/a"}


def test_a_bomb_is_not_inflated_beyond_its_size(folder):
    with pytest.raises(ArchiveError):
        unpacked(archive(good(content=bytes(50_000_000), num_bytes=10)), folder)
    assert sum(map(len, read_tree(folder).values())) <= 10


def test_the_builder_of_hostile_archives_builds_good_ones(folder):
    assert unpacked(archive(good(), good("b")), folder) == {"vllm/a": b"content", "b": b"content"}


def test_a_cut_archive_is_refused_wherever_it_is_cut(tmp_path, folder):
    whole = archive(good(content=os.urandom(300)))
    for end in range(len(whole)):
        with pytest.raises(ArchiveError):
            unpacked(whole[:end], folder)
    assert read_tree(folder) == {}


def test_a_changed_byte_is_noticed_or_changes_nothing(tmp_path):
    files = {"vllm/a": b"print(1)\n" * 40, "triton/b": os.urandom(200)}
    whole = archive(*(good(name, content) for name, content in files.items()))
    source = random.Random(34)
    for number in range(1500):
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
        unpacked(archive(good("a")), folder)
    assert (tmp_path / "target").read_bytes() == b""


def test_a_large_file_is_never_in_memory(tmp_path, folder):
    with (tmp_path / "file").open("wb") as file:
        file.truncate(64 << 20)
    tracemalloc.start()
    try:
        write_archive(tmp_path / "a.zip", RECORD, {"vllm/a": tmp_path / "file"})
        with (tmp_path / "a.zip").open("rb") as file:
            unpack(file, folder, max_bytes=GiB)
        assert tracemalloc.get_traced_memory()[1] < 8 << 20
    finally:
        tracemalloc.stop()


@pytest.mark.alone
def test_costs_grow_with_the_archive():
    def names(n: int) -> BytesIO:
        return BytesIO(archive(*(good(f"vllm/{'d/' * (number % 50)}{number}") for number in range(n // 8))))

    def read(file: BytesIO) -> object:
        return lambda: module._read_directory(file)

    def inflate(n: int) -> object:
        file = BytesIO(archive(good(content=bytes(n * 1000))))
        member = module._read_directory(file)[0]
        return lambda: sum(map(len, module._inflate(file, member)))

    assert growth(lambda n: read(names(n))) is None  # type: ignore[arg-type,return-value]
    assert growth(inflate) is None  # type: ignore[arg-type]
