"""`file://` URLs: only files below the operator's folder are read, also with links and `..`."""

import os
from pathlib import Path

import pytest

from server.renderers.images.fetcher import MediaError
from server.renderers.images.loader import find_file, read_file


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """The allowed folder, next to a secret file."""
    allowed = tmp_path / "media"
    (allowed / "sub").mkdir(parents=True)
    (allowed / "a b.png").write_bytes(b"image")
    (allowed / "sub" / "c.png").write_bytes(b"other")
    (tmp_path / "secret.png").write_bytes(b"secret")
    (tmp_path / "media2").mkdir()
    (tmp_path / "media2" / "x.png").write_bytes(b"secret")
    return allowed.resolve()


def _read(url: str, folder: Path | None, max_bytes: int = 1000) -> bytes:
    return read_file(find_file(url, folder).path, max_bytes=max_bytes)


def test_files_below_the_folder_are_read(folder):
    assert _read(f"file://{folder}/a%20b.png", folder) == b"image"
    assert _read(f"file://localhost{folder}/sub/../sub/c.png", folder) == b"other"


def test_a_link_inside_the_folder_is_followed(folder):
    (folder / "link.png").symlink_to(folder / "sub" / "c.png")
    assert _read(f"file://{folder}/link.png", folder) == b"other"


def test_without_the_flag_no_file_is_read(folder):
    with pytest.raises(MediaError, match="--allowed-local-media-path"):
        _read(f"file://{folder}/a%20b.png", None)


@pytest.mark.parametrize(
    "path",
    [
        "{folder}/../secret.png",
        "{folder}/%2e%2e/secret.png",
        "{folder}/sub/../../secret.png",
        "{folder}2/x.png",
        "/etc/passwd",
        "{folder}/nothing.png",
        "{folder}",
        "{folder}/x%00.png",
        "",
    ],
)
def test_files_outside_the_folder_and_missing_files_get_the_same_error(folder, path):
    with pytest.raises(MediaError, match="no such file below"):
        _read("file://" + path.format(folder=folder), folder)


@pytest.mark.parametrize("target", ["{parent}/secret.png", "/etc/passwd"])
def test_a_link_out_of_the_folder_is_rejected(folder, target):
    (folder / "link.png").symlink_to(target.format(parent=folder.parent))
    (folder / "dir").symlink_to(folder.parent)
    for name in ("link.png", "dir/secret.png"):
        with pytest.raises(MediaError, match="no such file below"):
            _read(f"file://{folder}/{name}", folder)


def test_a_cycle_of_links_is_rejected(folder):
    (folder / "x").symlink_to(folder / "y")
    (folder / "y").symlink_to(folder / "x")
    with pytest.raises(MediaError, match="no such file below"):
        _read(f"file://{folder}/x", folder)


def test_a_folder_and_a_pipe_are_rejected(folder):
    os.mkfifo(folder / "pipe")
    for name in ("sub", "pipe"):
        with pytest.raises(MediaError, match="does not name a regular file"):
            _read(f"file://{folder}/{name}", folder)


def test_a_large_file_is_rejected(folder):
    with pytest.raises(MediaError, match="larger than 4 bytes"):
        _read(f"file://{folder}/a%20b.png", folder, max_bytes=4)


def test_a_file_url_with_a_host_is_rejected(folder):
    with pytest.raises(MediaError, match="must name no host"):
        _read("file://example.com/a.png", folder)
