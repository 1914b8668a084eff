"""The records by which `vllm-cli ps` finds the servers of this user."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from startup.storage import run_record
from startup.storage.run_record import RunRecord, read_run_records, read_start, run_recorded
from tests.support.cli import run_python

_RECORD = RunRecord(engine="embedded", model="smol", address="http://0.0.0.0:8000")
_KEEP = f"""
import sys, time
from startup.storage import run_record
run_record._FOLDERS = (sys.argv[1],)
with run_record.run_recorded(run_record.{_RECORD!r}):
    print("kept", flush=True)
    time.sleep(600)
"""


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(run_record, "_FOLDERS", (str(tmp_path / "records"),))
    return tmp_path / "records"


def _elsewhere(*folders: Path, value: str = "len(run_record.read_run_records())") -> str:
    """The value of an expression in another process that looks for records in these folders."""
    code = "import sys; from startup.storage import run_record; run_record._FOLDERS = tuple(sys.argv[1:]); "
    return run_python(f"{code}print({value})", *folders).stdout.strip()


def test_a_record_ends_with_its_process_also_by_sigkill(folder):
    with subprocess.Popen([sys.executable, "-c", _KEEP, folder], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None and process.stdout.readline() == b"kept\n"
        (record,) = read_run_records()
        assert (record.pid, record.model, record.address) == (process.pid, "smol", "http://0.0.0.0:8000")
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert read_run_records() == []
    assert list(folder.iterdir()) == []


def test_what_a_process_notes_of_its_start_is_beside_its_record_which_stays_as_it_was(folder):
    with run_recorded(_RECORD) as note:
        (record,) = folder.iterdir()
        before = record.stat()
        assert (folder.stat().st_mode & 0o777, before.st_mode & 0o777) == (0o700, 0o600)
        for start in ({"start_mode": "cold"}, {"start_mode": "cold", "ready_s": 1.5}):
            note(start)
            assert _elsewhere(folder, value="run_record.read_run_records()[0].start") == str(start)
        assert (record.stat().st_ino, record.stat().st_mtime_ns) == (before.st_ino, before.st_mtime_ns)
    assert list(folder.iterdir()) == []


def test_a_process_with_a_record_reads_the_newest_note_of_others_and_keeps_its_own_record(folder):
    with run_recorded(_RECORD):
        for age, mode in enumerate(("warm", "cold")):
            note = folder / f"12345-{age}.json.start"
            note.write_text(json.dumps({"start_mode": mode}))
            os.utime(note, (9 - age, 9 - age))
        assert read_start([1, 12345]) == {"start_mode": "warm"}
        assert read_start([1]) == {}
        assert _elsewhere(folder) == "1"


def test_the_note_of_a_removed_record_is_removed(folder):
    with run_recorded(_RECORD) as note:
        note({})
        next(folder.glob("*.json")).unlink()
        assert read_run_records() == []
        assert list(folder.iterdir()) == []


@pytest.mark.parametrize("is_elsewhere", [False, True])
def test_a_process_in_another_network_namespace_is_not_listed(is_elsewhere, folder, tmp_path, monkeypatch):
    """The address of such a process means another server here."""
    if is_elsewhere:
        monkeypatch.setattr(run_record, "_NETWORK", tmp_path / "net")
        (tmp_path / "net").symlink_to("net:[1]")
    with run_recorded(_RECORD):
        assert _elsewhere(folder) == ("0" if is_elsewhere else "1")


@pytest.mark.parametrize("taken", [1, 2])
def test_a_folder_of_another_user_is_passed_over(taken, folder, tmp_path, monkeypatch):
    """Any user can create a folder in /tmp."""
    folders = [tmp_path / name for name in ("a", "b", "c")]
    monkeypatch.setattr(run_record, "_FOLDERS", tuple(map(str, folders)))
    for path in folders[:taken]:
        path.mkdir()
        path.chmod(0o777)
    with run_recorded(_RECORD):
        assert _elsewhere(*folders) == "1"
        assert list(folders[taken].glob("*.json"))


def test_without_any_folder_the_reason_is_told_once(folder, caplog, monkeypatch):
    folder.mkdir()
    folder.chmod(0o755)
    run_record._tell_once.cache_clear()
    with run_recorded(_RECORD):
        assert [read_run_records(), read_run_records()] == [[], []]
    problem = f"{folder} must be a folder of this user with mode 0700"
    assert caplog.messages == [f"running servers are not known: {problem}"]
    monkeypatch.setattr(run_record, "_FOLDERS", ("/proc/none",))  # which cannot be created
    with run_recorded(_RECORD):
        assert read_run_records() == []
