"""Records by which `vllm-cli ps` finds servers of this user, and a start's folder for temporary files."""

import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
from pathlib import Path
from uuid import uuid4

import pytest

from startup.errors import StartupError
from startup.storage import run_record, temp_folder
from startup.storage.run_record import RunRecord, read_run_records, read_start, run_recorded
from startup.storage.temp_folder import ensure_temp_folder, own_folder, remove_left_behind
from tests.support.cli import run_python
from tests.support.folders import short_folder

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
    cached = {other, outside, tmp_path / "vcli-link", tmp_path / "vcli-file"}
    with own_folder(str(tmp_path)) as first, own_folder(str(tmp_path)) as second:
        (first / "a").touch()
        assert set(tmp_path.iterdir()) == {*cached, first, second}
    assert set(tmp_path.iterdir()) == cached
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
    arguments = [sys.executable, "-c", _FORKS, str(tmp_path)]
    with subprocess.Popen(arguments, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.wait(60) == 0
        remove_left_behind(str(tmp_path))
        assert len(list(tmp_path.iterdir())) == 1
        process.communicate()
    remove_left_behind(str(tmp_path))
    assert list(tmp_path.iterdir()) == []
