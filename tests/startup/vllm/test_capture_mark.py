"""A start remembers captures that have failed, and nothing else that an engine can do or suffer."""

import os
import pickle
import signal
import subprocess
import sys
from contextlib import contextmanager

import pytest

from startup.storage.caches import CachedValue
from startup.vllm.patches.graphs.capture_mark import DIED, CaptureMark
from startup.vllm.serving.start_metrics import forget_captures

MARK = CaptureMark(CachedValue("graph-memory", "test", lasts_s=100.0))
_ENGINE = """
import sys
from startup.storage.caches import CachedValue
from startup.vllm.patches.graphs.capture_mark import CaptureMark

mark = CaptureMark(CachedValue("graph-memory", "test", lasts_s=100.0))
for state in sys.stdin:
    if state == "capture\\n":
        block = mark.capturing()
        block.__enter__()
    else:
        block.__exit__(None, None, None)
    print("done", flush=True)
"""


@pytest.fixture(autouse=True)
def _cache(monkeypatch, tmp_path):
    monkeypatch.setenv("VLLM_CACHE_ROOT", str(tmp_path))


@contextmanager
def engine(*states: str):
    """An engine in a process of its own, which captures, or waits after a capture."""
    arguments = [sys.executable, "-c", _ENGINE]
    with subprocess.Popen(arguments, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        for state in states:
            process.stdin.write(f"{state}\n")
            process.stdin.flush()
            process.stdout.readline()
        yield process
        process.kill()


@pytest.mark.parametrize(
    ("states", "failure"),
    [((), None), (("capture",), DIED), (("capture", "wait"), None), (("capture", "wait", "capture"), DIED)],
    ids=["before", "in a capture", "between two", "in the second"],
)
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSEGV])
def test_only_an_engine_that_dies_in_a_capture_is_a_failure(states, failure, number):
    with engine(*states) as process:
        assert MARK.failure() is None, "it lives"
        os.kill(process.pid, number)
        process.wait()
        assert MARK.failure() == failure
        assert MARK.failure() == failure, "also for later starts"


def test_an_engine_that_a_stopping_server_kills_in_a_capture_is_no_failure(tmp_path, monkeypatch):
    monkeypatch.setenv("VCLI_START_FOLDER", str(tmp_path))
    with engine("capture") as process:
        forget_captures(tmp_path)
        process.kill()
        process.wait()
        assert MARK.failure() is None


def test_one_of_several_engines_with_equal_settings_may_die():
    with engine("capture"), engine("capture", "wait"), engine("capture") as dying:
        assert MARK.failure() is None
        dying.kill()
        dying.wait()
        assert MARK.failure() == DIED


def test_an_error_in_a_capture_leaves_no_note(tmp_path):
    with pytest.raises(ValueError, match="no memory"), MARK.capturing():
        assert MARK.failure() is None
        raise ValueError("no memory")
    assert [*tmp_path.rglob("*.*")] == []
    assert MARK.failure() is None


def test_other_settings_and_old_notes_do_not_count(tmp_path):
    with engine("capture") as process:
        process.kill()
        process.wait()
        (note,) = tmp_path.rglob("*.capturing")
        assert CaptureMark(CachedValue("graph-memory", "other")).failure() is None
        os.utime(note, (0, 0))
        assert MARK.failure() is None
        assert not note.exists()


def test_a_success_is_remembered_and_a_mark_goes_to_another_process():
    MARK.remember("it failed")
    sent = pickle.loads(pickle.dumps(MARK))
    assert sent.failure() == "it failed"
    sent.forget()
    assert MARK.failure() is None


def test_where_nothing_can_be_written_captures_go_on(tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv("VLLM_CACHE_ROOT", str(tmp_path / "file"))
    with MARK.capturing():
        assert MARK.failure() is None
