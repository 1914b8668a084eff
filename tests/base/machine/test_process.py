"""A process reads and changes its words, heap, priority and files, and waits for the end of processes."""

import ctypes
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil
import pytest

from base.machine.files import write_whole
from base.machine.libc import trim_heap
from base.machine.processes import EndWatch
from tests.support.waiting import wait_until

_SCRIPT = """
import sys
from base.machine.command_line import mask_command_line
mask_command_line()
sys.stdout.write(open("/proc/self/cmdline").read())
sys.stdout.flush()
sys.stdin.read()
"""


def test_secrets_are_masked_in_proc_cmdline(tmp_path):
    words = ["MODEL", "--api-key", "one", "ключ", "--hf-tok", "two", "twofold", "one-more", "", "--x_key=one"]
    child = subprocess.Popen(
        [sys.executable, "-c", _SCRIPT, *words], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    while "--x_key=***" not in Path(f"/proc/{child.pid}/cmdline").read_text():
        assert child.poll() is None
    shown = Path(f"/proc/{child.pid}/cmdline").read_text().split("\0")[3:-1]
    child.stdin.close()
    assert child.stdout.read().split("\0")[3:-1] == shown
    assert child.wait() == 0
    child.stdout.close()
    stars = "*" * len("ключ".encode())
    assert shown == ["MODEL", "--api-key", "***", stars, "--hf-tok", "***", "twofold", "one-more", "", "--x_key=***"]


_BLOCK = 16 << 10
"""Smaller than the blocks that malloc maps separately."""
_NUM_BLOCKS = 4096


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "malloc_trim"), reason="needs glibc")
def test_freed_blocks_below_a_used_one_go_back_to_the_system():
    libc = ctypes.CDLL(None)
    libc.malloc.restype = ctypes.c_void_p
    libc.free.argtypes = [ctypes.c_void_p]
    blocks = [libc.malloc(_BLOCK) for _ in range(_NUM_BLOCKS)]
    for block in blocks:
        ctypes.memset(block, 1, _BLOCK)
    highest = max(blocks)
    for block in blocks:
        if block != highest:
            libc.free(block)
    before = psutil.Process().memory_info().rss
    trim_heap()
    assert before - psutil.Process().memory_info().rss > 0.9 * _NUM_BLOCKS * _BLOCK
    libc.free(highest)


@pytest.fixture
def process() -> Iterator["subprocess.Popen[bytes]"]:
    command = [sys.executable, "-c", "import signal; print(flush=True); signal.pause()"]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as started:
        started.stdout.readline()
        yield started
        started.kill()


def test_an_exit_is_detected_before_and_after_the_process_is_reaped(process):
    watch = EndWatch(process.pid)
    assert not watch.is_exiting()
    process.send_signal(signal.SIGSTOP)
    os.waitid(os.P_PID, process.pid, os.WSTOPPED | os.WNOWAIT)
    assert not watch.is_exiting(), "it is only stopped"
    process.kill()
    wait_until(watch.is_exiting)
    os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
    assert watch.is_exiting()  # it has exited, but is not reaped yet
    process.wait()
    assert watch.is_exiting()
    watch.close()
    watch.close()
    assert not EndWatch(process.pid).is_exiting(), "a process that was reaped before is not watched"


def test_a_new_file_has_ordinary_permissions_and_a_link_stays_a_link(tmp_path):
    (tmp_path / "plain").write_text("")
    write_whole(tmp_path / "file", "text")
    assert (tmp_path / "file").read_text() == "text"
    assert (tmp_path / "file").stat().st_mode == (tmp_path / "plain").stat().st_mode
    (tmp_path / "link").symlink_to("file")
    write_whole(tmp_path / "link", "new")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "file").read_text() == "new"


def test_a_failure_leaves_the_old_file_and_nothing_else(tmp_path):
    path = tmp_path / "file"
    path.write_text("old")
    with pytest.raises(UnicodeEncodeError):
        write_whole(path, "\udc80")
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_pipe_is_written_to(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    with ThreadPoolExecutor(1) as reader:
        read = reader.submit((tmp_path / "pipe").read_text)
        write_whole(tmp_path / "pipe", "text")
        assert read.result(60) == "text"
