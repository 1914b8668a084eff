"""A location has complete archives of the first writer. A folder has no files of other users."""

import errno
import os
import resource
import time
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from unittest.mock import Mock

import pytest

from startup.compiled_models import location as module
from startup.compiled_models.archive import read_record, unpack
from startup.compiled_models.location import Location, LocationError, open_location
from startup.compiled_models.record import CompiledModel
from tests.startup.compiled_models.conftest import FILES, save_archive
from tests.support.properties import given, st

NAME = "0.32.0-abc/key.zip"
_STRANGER = 4711


@pytest.fixture
def record(tmp_path: Path) -> CompiledModel:
    """The record of the archive `a.zip`."""
    return save_archive(tmp_path / "a.zip")


@pytest.fixture
def shared(tmp_path: Path, record: CompiledModel) -> Location:
    """A folder with the archive."""
    location = open_location(str(tmp_path / "shared"))
    assert location.add(NAME, tmp_path / "a.zip")
    return location


def problem(work) -> str:
    with pytest.raises(LocationError) as caught:
        work()
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("kind", ["{}", "file://{}", "~/shared"])
def test_an_archive_is_added_listed_read_and_removed(kind, tmp_path, record, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    address = kind.format(tmp_path / "shared")
    location = open_location(address)
    assert (location.list(), location.list("0.32.0-abc")) == ([], [])
    assert location.add(NAME, tmp_path / "a.zip")
    assert not location.add(NAME, tmp_path / "a.files/vllm/a/empty")
    assert location.add("other/key.zip", tmp_path / "a.zip")
    assert {archive.name for archive in location.list()} == {NAME, "other/key.zip"}
    (listed,) = location.list("0.32.0-abc")
    status = (tmp_path / "a.zip").stat()
    assert (listed.name, listed.size) == (NAME, status.st_size)
    assert int(status.st_mtime) <= listed.modified_s <= time.time()
    (tmp_path / "unpacked").mkdir()
    with location.open(NAME) as file:
        unpacked = unpack(file, tmp_path / "unpacked", CompiledModel, max_bytes=1 << 30)
        assert read_record(file, CompiledModel) == unpacked == record
    assert (tmp_path / "unpacked/triton/x/kernel.so").read_bytes() == FILES["triton/x/kernel.so"]
    for name in ("a.zip", "../a/b.zip"):
        assert "cannot be the name of an archive" in problem(lambda name=name: location.open(name))
    location.touch(NAME)
    location.remove(NAME)
    location.remove(NAME)
    assert location.list("0.32.0-abc") == []
    assert NAME in problem(lambda: open_location(address).open(NAME))


def test_a_listing_has_the_newest_archives_and_no_other_files(shared, tmp_path):
    folder = tmp_path / "shared" / "0.32.0-abc"
    for number in range(250):
        (folder / f"{number}.zip").touch()
        os.utime(folder / f"{number}.zip", (number, number))
    for other in ("readme.txt", ".key.zip.0123456789abcdef.part", "a b.zip"):
        (folder / other).touch()
    (folder / "link.zip").symlink_to("key.zip")
    (folder / "folder.zip").mkdir()
    (tmp_path / "shared" / "top.zip").touch()
    assert [archive.name for archive in shared.list()] == [NAME, *(f"0.32.0-abc/{n}.zip" for n in range(249, 50, -1))]
    shared.touch("0.32.0-abc/7.zip")
    shared.touch("0.32.0-abc/missing.zip")
    assert shared.list()[0].name == "0.32.0-abc/7.zip"


@pytest.mark.parametrize("name", ["", "a.zip", "a/b", "../a.zip", "a/../b.zip", "a/b/c.zip", "a/.b.zip", "/a/b.zip"])
def test_a_name_that_no_archive_has_is_refused(name, shared, tmp_path):
    for work in (shared.open, shared.remove, shared.touch, lambda name: shared.add(name, tmp_path / "a.zip")):
        assert "cannot be the name of an archive in" in problem(lambda work=work: work(name))
    assert shared.list("../shared/0.32.0-abc") == []


@given(st.text("aZ0-_+./\\ \n\0é", max_size=9), st.sampled_from(["", ".zip", "/a.zip", "/.zip"]))
def test_a_name_is_refused_or_that_of_a_file_in_a_folder_of_the_location(begin, end):
    with TemporaryDirectory() as top:
        (Path(top) / "content").touch()
        (Path(top) / "in").mkdir()
        with suppress(LocationError):
            open_location(f"{top}/in/shared").add(f"{begin}{end}", Path(top) / "content")
        found = [str(path.relative_to(top)) for path in Path(top).rglob("*") if path.is_file()]
        assert sorted(found) in (["content"], sorted(["content", f"in/shared/{begin}{end}"]))
        assert all(file.count("/") == 3 for file in found if file != "content")


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may give links away")
@pytest.mark.parametrize("address", ["link/folder", "own/folder"])
def test_a_link_of_another_user_is_not_followed(address, tmp_path):
    """The link leads to a trusted folder, in which `add` would create files."""
    place, folder = tmp_path / "tmp", tmp_path / "folder"
    place.mkdir()
    folder.mkdir(mode=0o755)
    place.chmod(0o1777)
    (place / "link").symlink_to(tmp_path)
    (place / "own").symlink_to("link")
    address = f"{place}/{address}"
    assert open_location(address).list() == []
    os.lchown(place / "link", _STRANGER, _STRANGER)
    assert f"link belongs to another user ({_STRANGER})" in problem(lambda: open_location(address))
    assert list(folder.iterdir()) == []


def test_a_link_that_others_can_replace_is_not_followed(tmp_path):
    (tmp_path / "link").symlink_to(tmp_path / "folder")
    (tmp_path / "folder").mkdir(mode=0o755)
    tmp_path.chmod(0o777)
    assert "other users can write to" in problem(lambda: open_location(str(tmp_path / "link")))


@pytest.mark.parametrize("address", ["", "s3://bucket/folder", "http://host/folder", "file://"])
def test_an_address_of_another_kind_is_refused(address):
    assert "is not a location: give a folder, such as one of a mounted" in problem(lambda: open_location(address))


def test_a_location_whose_parent_is_missing_or_that_is_a_file_is_refused(tmp_path, record):
    for path in (tmp_path / "no" / "folder", tmp_path / "a.zip"):
        assert "is neither a folder nor" in problem(lambda path=path: open_location(str(path)))


@pytest.mark.parametrize("part", ["", "shared", "shared/0.32.0-abc", f"shared/{NAME}"])
@pytest.mark.parametrize("change", ["mode", "owner"])
def test_what_others_can_change_is_not_used(part, change, shared, tmp_path):
    if change == "owner" and os.geteuid() != 0:
        pytest.skip("only root may give files away")
    path = tmp_path / part
    if change == "mode":
        path.chmod(path.stat().st_mode | 0o020)
    else:
        os.chown(path, _STRANGER, -1)
    expected = "other users can write to" if change == "mode" else f"belongs to another user ({_STRANGER})"
    assert expected in problem(lambda: shared.open(NAME))
    if part in ("", "shared"):
        assert "is not used: only its user and root" in problem(lambda: open_location(str(tmp_path / "shared")))
    if part != f"shared/{NAME}":
        assert expected in problem(lambda: shared.add("0.32.0-abc/b.zip", tmp_path / "a.zip"))
        assert expected in problem(lambda: shared.list("0.32.0-abc"))


def test_links_and_pipes_are_not_opened(shared, tmp_path):
    folder = tmp_path / "shared" / "0.32.0-abc"
    (folder / "link.zip").symlink_to("key.zip")
    os.mkfifo(folder / "pipe.zip", mode=0o600)
    assert "cannot be read" in problem(lambda: shared.open("0.32.0-abc/link.zip"))
    assert "is not a regular file" in problem(lambda: shared.open("0.32.0-abc/pipe.zip"))
    folder.with_name("kind").symlink_to(folder.name)
    assert "other users can write to" in problem(lambda: shared.open("kind/key.zip"))


@pytest.mark.parametrize("number", [errno.EPERM, errno.ENOSYS])
def test_without_links_the_first_writer_wins_too(number, tmp_path, record, monkeypatch):
    monkeypatch.setattr(Path, "hardlink_to", Mock(side_effect=OSError(number, os.strerror(number))))
    assert open_location(str(tmp_path / "shared")).add(NAME, tmp_path / "a.zip")
    assert not module._link(tmp_path / "a.zip", tmp_path / "shared" / NAME)  # another has added it meanwhile
    assert os.listdir(tmp_path / "shared" / "0.32.0-abc") == ["key.zip"]  # noqa: PTH208


def test_a_file_that_cannot_be_written_completely_is_removed(tmp_path, record):
    location = open_location(str(tmp_path / "shared"))
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, before[1]))
    try:
        assert "cannot be written to: File too large" in problem(lambda: location.add(NAME, tmp_path / "a.zip"))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert list((tmp_path / "shared" / "0.32.0-abc").iterdir()) == []
    assert location.add(NAME, tmp_path / "a.zip")
    assert (tmp_path / "shared" / NAME).stat().st_mode & 0o777 == 0o644
