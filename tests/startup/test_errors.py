"""The type of an error, or the step that raised it, tells what has failed, and no words of its message."""

import errno
import os
import resource
import socket
import threading
from pathlib import Path

import pytest

from startup.errors import is_of_machine


def _listen_twice() -> None:
    with socket.create_server(("127.0.0.1", 0)) as first:
        socket.create_server(first.getsockname())


def _open_too_many_files() -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (0, hard))
    try:
        os.open("/", os.O_RDONLY)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def _start_thread() -> None:
    before = threading.stack_size(1 << 47)
    try:
        threading.Thread(target=id).start()
    finally:
        threading.stack_size(before)


def _import_on_full_disk() -> None:
    try:
        Path("/dev/full").write_text("a")
    except OSError as err:
        raise ImportError("a module cannot be loaded") from err


def _raise(err: Exception) -> None:
    raise err


_WORDS = "MemoryError: can't start new thread: [Errno 28] No space left on device"


@pytest.mark.parametrize(
    ("fails", "is_expected"),
    [
        (_listen_twice, True),
        (_open_too_many_files, True),
        (_start_thread, True),
        (_import_on_full_disk, True),
        (lambda: bytearray(1 << 62), True),
        (lambda: _raise(PermissionError(errno.EACCES, "")), True),
        (lambda: Path("/missing").read_bytes(), False),
        (lambda: _raise(RuntimeError(_WORDS)), False),
    ],
)
def test_what_the_machine_refuses_is_known_by_the_kind_of_the_error(fails, is_expected):
    with pytest.raises(Exception) as caught:
        fails()
    assert is_of_machine(caught.value) is is_expected
