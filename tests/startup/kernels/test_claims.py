"""Two processes never compile the same kernel at a time, and the end of one frees its claims."""

import os
import signal

import pytest

from startup.kernels import claims
from startup.kernels.claims import Claims


@pytest.fixture
def holder(tmp_path):
    """Another process that has claimed the kernel `a`."""
    begun, ready = os.pipe()
    pid = os.fork()
    if pid == 0:
        with Claims(tmp_path).try_claim("a") as is_claimed:
            os.write(ready, b"%d" % is_claimed)
            signal.pause()
    assert os.read(begun, 1) == b"1"
    yield pid
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    os.close(begun)
    os.close(ready)


def test_a_claimed_kernel_cannot_be_claimed_until_its_process_ends(tmp_path, holder):
    both = Claims(tmp_path)
    with both.try_claim("a") as has_a, both.try_claim("b") as has_b:
        assert (has_a, has_b) == (False, True)


def test_an_engine_waits_until_the_process_that_compiles_ends(tmp_path):
    begun, ready = os.pipe()
    pid = os.fork()
    if pid == 0:
        with Claims(tmp_path).try_claim("a"):
            os.write(ready, b"1")
            signal.pause()
    os.read(begun, 1)
    os.close(begun)
    os.close(ready)
    os.kill(pid, signal.SIGKILL)
    with Claims(tmp_path).claimed("a"), Claims(tmp_path).try_claim("a") as is_free:
        assert not is_free
    os.waitpid(pid, 0)


def test_the_wait_for_another_process_ends(tmp_path, holder, monkeypatch):
    monkeypatch.setattr(claims, "LONGEST_WAIT_S", 0.0)
    with Claims(tmp_path).claimed("a") as waited_s:
        assert waited_s >= 0


def test_without_a_folder_the_engine_does_not_wait(tmp_path):
    (tmp_path / "file").touch()
    with Claims(tmp_path / "file").claimed("a") as waited_s:
        assert waited_s == 0


def test_problems_are_kept(tmp_path):
    Claims(tmp_path).note_problem("a", "no compiler")
    assert [Claims(tmp_path).problem(key) for key in "ab"] == ["no compiler", ""]
