"""A start finds a folder for temporary files, or fails with an error that names the fix."""

import os
import socket
import tempfile
from pathlib import Path

import pytest

from startup import temp_folder
from startup.errors import StartupError
from startup.temp_folder import ensure_temp_folder
from tests.startup.vllm.fake_start import short_folder


@pytest.fixture
def no_folder_is_writable(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """The folders do not exist: root could write to a read-only one."""
    missing = tmp_path / "missing"
    monkeypatch.setattr(temp_folder, "_FOLDERS", (str(missing),))
    for name in ("TEMP", "TMP"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TMPDIR", str(missing))
    return missing


def test_a_usable_folder_is_kept(monkeypatch):
    with short_folder() as folder:
        monkeypatch.setenv("TMPDIR", str(folder))
        ensure_temp_folder()
        assert os.environ["TMPDIR"] == str(folder)


@pytest.mark.parametrize(("num_bytes", "is_too_long"), [(75, False), (76, True)])
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
        folder = tempfile.mkdtemp(prefix="pymp-")  # as multiprocessing does
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(tempfile.mktemp(prefix="listener-", dir=folder))


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
