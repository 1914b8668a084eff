"""A start finds a place for temporary files, or says that there is none."""

import os
from pathlib import Path

import pytest

from startup import temp_folder
from startup.errors import StartupError
from startup.temp_folder import ensure_temp_folder


@pytest.fixture
def nothing_can_be_written(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """Not even for root, who may write everywhere: the folders are not there."""
    missing = tmp_path / "missing"
    monkeypatch.setattr(temp_folder, "_FOLDERS", (str(missing),))
    monkeypatch.setattr(os, "curdir", str(missing))
    for name in ("TEMP", "TMP"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TMPDIR", str(missing))
    return missing


def test_a_folder_that_can_be_used_is_left_alone(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    ensure_temp_folder()
    assert os.environ["TMPDIR"] == str(tmp_path)


def test_shared_memory_is_the_last_resort(nothing_can_be_written: Path, caplog, monkeypatch, tmp_path: Path) -> None:
    monkeypatch.setattr(temp_folder, "SHM", tmp_path)
    ensure_temp_folder()
    assert os.environ["TMPDIR"] == str(tmp_path)
    assert str(nothing_can_be_written) in caplog.text


def test_no_folder_at_all_ends_the_start(nothing_can_be_written: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(temp_folder, "SHM", nothing_can_be_written)
    with pytest.raises(StartupError, match="mount a tmpfs on /tmp, or set TMPDIR"):
        ensure_temp_folder()
