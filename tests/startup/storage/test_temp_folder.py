"""A start finds a folder for temporary files, or fails with an error that names the fix."""

import os
import socket
import subprocess
import sys
import tempfile
from pathlib import Path
from uuid import uuid4

import pytest

from startup.errors import StartupError
from startup.storage import temp_folder
from startup.storage.temp_folder import ensure_temp_folder, own_folder, remove_left_behind
from tests.support.folders import short_folder


@pytest.fixture
def no_folder_is_writable(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """The folders for temporary files do not exist. Root could write to read-only folders."""
    missing = tmp_path / "missing"
    monkeypatch.setattr(temp_folder, "_FOLDERS", (str(missing),))
    for name in ("TEMP", "TMP"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TMPDIR", str(missing))
    return missing


@pytest.mark.parametrize(("num_bytes", "is_too_long"), [(70, False), (71, True)])
def test_a_folder_whose_path_is_too_long_for_sockets_is_not_used(monkeypatch, caplog, num_bytes, is_too_long):
    with short_folder() as short:
        long = short / ("l" * (num_bytes - 1 - len(str(short))))
        long.mkdir()
        monkeypatch.setattr(temp_folder, "_FOLDERS", (str(short),))
        monkeypatch.setenv("TMPDIR", str(long))
        ensure_temp_folder()
        assert os.environ["TMPDIR"] == str(short if is_too_long else long)
        assert (str(long) in caplog.text) == is_too_long
        monkeypatch.setattr(tempfile, "tempdir", None)
        folder = tempfile.mkdtemp(prefix="vcli-")
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(tempfile.mktemp(prefix="listener-", dir=folder))
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(f"{tempfile.gettempdir()}/{uuid4()}")  # vLLM's


@pytest.mark.parametrize("has_shared_memory", [True, False])
def test_shared_memory_is_used_before_the_working_folder(no_folder_is_writable, caplog, monkeypatch, has_shared_memory):
    with short_folder() as work, short_folder() as memory:
        monkeypatch.chdir(work)
        monkeypatch.setattr(temp_folder, "SHM", memory if has_shared_memory else no_folder_is_writable)
        ensure_temp_folder()
        used = str(memory if has_shared_memory else work)
        assert os.environ["TMPDIR"] == used
        assert f"no temporary file can be created in {no_folder_is_writable}" in caplog.text
        assert f"using {used}; mount a tmpfs on /tmp, or set TMPDIR" in caplog.text


def test_no_folder_at_all_ends_the_start(no_folder_is_writable, monkeypatch):
    monkeypatch.setattr(temp_folder, "SHM", no_folder_is_writable)
    monkeypatch.setattr(os, "curdir", str(no_folder_is_writable))
    with pytest.raises(StartupError, match="mount a tmpfs on /tmp, or set TMPDIR"):
        ensure_temp_folder()


def test_folders_that_no_process_has_locked_are_removed_and_no_others(tmp_path):
    """A link, a file and folders of other programs stay."""
    stale, other, outside = (tmp_path / name for name in ("vcli-stale", "pymp-other", "outside"))
    for folder in (stale, other, outside):
        folder.mkdir()
        (folder / "listener").touch()
    (tmp_path / "vcli-link").symlink_to(outside)
    (tmp_path / "vcli-file").touch()
    kept = {other, outside, tmp_path / "vcli-link", tmp_path / "vcli-file"}
    with own_folder(str(tmp_path)) as first, own_folder(str(tmp_path)) as second:
        (first / "a").touch()
        assert set(tmp_path.iterdir()) == {*kept, first, second}
    assert set(tmp_path.iterdir()) == kept
    assert (outside / "listener").exists()


_FORKS = """
import os, sys
from startup.storage.temp_folder import own_folder

folder = own_folder(sys.argv[1])
folder.__enter__()
if os.fork() == 0:
    os.read(0, 1)
os._exit(0)
"""


def test_a_folder_stays_until_the_last_process_that_its_own_has_forked_ends(tmp_path):
    words = [sys.executable, "-c", _FORKS, str(tmp_path)]
    with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.wait(60) == 0
        remove_left_behind(str(tmp_path))
        assert len(list(tmp_path.iterdir())) == 1
        process.communicate()
    remove_left_behind(str(tmp_path))
    assert list(tmp_path.iterdir()) == []
