"""Uses a forkserver as a launcher does. `test_init_process.py` runs this program."""

import atexit
import multiprocessing
import os
import signal
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from multiprocessing import shared_memory
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import psutil
import pytest

from startup.processes import forkserver, interpreter, new_program

_CONTEXT = multiprocessing.get_context("spawn")
_IMPORT = "tests.startup.processes.imported_with_file"


def _start(target: Any, *args: Any) -> Any:
    process = _CONTEXT.Process(target=target, args=args)
    process.start()
    return process


def _end(target: Any, *args: Any) -> int | None:
    process = _start(target, *args)
    process.join(60)
    return process.exitcode


def _server_pid() -> int:
    return forkserver._this.server.pid


def _raise() -> None:
    raise ValueError


def healthy() -> None:
    """All functions use one forkserver."""
    forkserver.ensure_forkserver(_IMPORT)
    for each in (ends, exit_functions, contexts, shared, family):
        each()


def ends() -> None:
    sleeping = _start(time.sleep, 100)
    assert sleeping.exitcode is None
    sleeping.kill()
    sleeping.join(60)
    assert (sleeping.exitcode, _end(os.getpid), _end(sys.exit, 7), _end(_raise)) == (-signal.SIGKILL, 0, 7, 1)


def refused() -> None:
    """After an import that refuses forks, processes of other threads are forks in spite of the risk."""
    with tempfile.NamedTemporaryFile() as forks, ThreadPoolExecutor(1) as thread:
        os.environ["FORKS"] = forks.name
        forkserver.ensure_forkserver("tests.startup.processes.refuses_forks")
        assert (_is_fork(), forks.read()) == (False, b""), "the forkserver was forked, if only to refuse"
        assert thread.submit(_is_fork).result(), "there, it cannot be a new program"
        assert forks.read() == b"fork\n"


def _is_fork() -> bool:
    ours, theirs = multiprocessing.Pipe()
    _start(_describe, theirs, 0)
    return bool(ours.recv()[0] == _server_pid())


def exit_functions() -> None:
    """A process runs its own exit functions, and not those of the forkserver."""
    ours, theirs = multiprocessing.Pipe()
    process = _start(_register, theirs)
    process.join(60)
    assert (ours.recv(), ours.poll(), process.exitcode) == ("its own", False, 0)


def _register(pipe: Connection) -> None:
    atexit.register(pipe.send, "its own")


def family() -> None:
    """A process and its child have the forkserver as parent, and the arguments of their logical parent."""
    ours, theirs = multiprocessing.Pipe()
    sys.argv = ["an argument"]
    _start(_describe, theirs, 1)
    assert [ours.recv(), ours.recv()] == [(_server_pid(), ["an argument"], os.devnull)] * 2


def _describe(pipe: Connection, depth: int) -> None:
    pipe.send((os.getppid(), sys.argv, str(Path("/proc/self/fd/0").readlink())))
    if depth:
        assert _end(_describe, pipe, depth - 1) == 0


def contexts() -> None:
    """Since Python 3.14, `forkserver` is the default of `ProcessPoolExecutor`."""
    for method in ("spawn", "forkserver"):
        ours, theirs = multiprocessing.Pipe()
        process = multiprocessing.get_context(method).Process(target=_send_parent, args=(theirs,))  # type: ignore[attr-defined]
        process.start()
        assert ours.recv() == _server_pid()
        process.join()
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("forkserver")) as pool:
        assert pool.submit(os.getppid).result() == _server_pid()
    commands = [" ".join(child.cmdline()) for child in psutil.Process().children()]
    assert [sum(f"{name} import" in line for line in commands) for name in ("forkserver", "resource_tracker")] == [
        1,
        1,
    ]


def _send_parent(pipe: Connection) -> None:
    pipe.send(os.getppid())


def shared() -> None:
    queue, counter = _CONTEXT.Queue(), _CONTEXT.Value("i", 0)
    memory = shared_memory.SharedMemory(create=True, size=8)
    processes = [_start(_share, queue, counter, memory.name) for _ in range(2)]
    assert [queue.get(timeout=60) for _ in processes] == [3, 3]
    for process in processes:
        process.join(60)
    assert (counter.value, memory.buf[0]) == (20, 5)
    memory.close()
    memory.unlink()


def _share(queue: Any, counter: Any, name: str) -> None:
    for _ in range(10):
        with counter.get_lock():
            counter.value += 1
    memory = shared_memory.SharedMemory(name)
    memory.buf[0] = 5
    memory.close()
    queue.put(3)


def file_numbers() -> None:
    """An import's file has a high number. A child can read a file of ours with this number all the same."""
    forkserver.ensure_forkserver(_IMPORT)
    ours, theirs = multiprocessing.Pipe()
    _start(_send_number, theirs)
    number = ours.recv()
    assert number > 200
    read_fd, write_fd = os.pipe()
    os.write(write_fd, b"text")
    os.dup2(read_fd, number)
    _start(_read, theirs, Connection(number, writable=False))
    theirs.close()
    assert ours.recv() == "text"


def _send_number(pipe: Connection) -> None:
    pipe.send(sys.modules[_IMPORT].FILE)


def _read(pipe: Connection, sent: Connection) -> None:
    pipe.send(os.read(sent.fileno(), 10).decode())


def dormant() -> None:
    """The dormant forkserver forks, unless it was killed."""
    for is_killed in (False, True):
        new_program.fork_dormant(lambda: None, {})
        pid = new_program._this.dormant.pid
        if is_killed:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
        forkserver.ensure_forkserver("decimal")
        assert (_server_pid() == pid, _end(sys.exit, 7)) == (not is_killed, 7)
        forkserver.kill()
        forkserver._this.server = None


def untested() -> None:
    """After a trial process, the forkserver and the resource tracker are children."""
    interpreter.NEWEST_TESTED = (3, 10)  # type: ignore[misc]
    forkserver.ensure_forkserver("decimal")
    assert (_end(sys.exit, 7), len(psutil.Process().children())) == (7, 2)


def untested_and_broken() -> None:
    interpreter.NEWEST_TESTED = (3, 10)  # type: ignore[misc]
    start, forkserver.ForkedPopen.start = forkserver.ForkedPopen.start, None  # type: ignore[method-assign,assignment]
    with pytest.raises(OSError, match="is not tested, and a trial process fails: TypeError"):
        forkserver.ensure_forkserver("decimal")
    forkserver.ForkedPopen.start = start  # type: ignore[method-assign]
    assert (_end(sys.exit, 7), len(psutil.Process().children())) == (7, 1)


def killed() -> None:
    """A process outlives the forkserver. Later ones are new programs."""
    forkserver.ensure_forkserver("decimal")
    process = _start(time.sleep, 100)
    forkserver.kill()
    assert process.exitcode is None and psutil.pid_exists(process.pid)
    process.kill()
    process.join(60)
    assert [_end(os.getpid), _end(os.getpid)] == [0, 0]


def does_not_answer() -> None:
    """The first process finds the forkserver stopped, and the second finds it killed."""
    forkserver._MOST_STOPPED_POLLS = 1  # type: ignore[misc]
    forkserver.ensure_forkserver("decimal")
    os.kill(_server_pid(), signal.SIGSTOP)
    assert [_end(sys.exit, 7), _end(sys.exit, 7)] == [7, 7]


def alone() -> None:
    """The forkserver ends if no process can send requests to it any more."""
    forkserver.ensure_forkserver("decimal")
    process = psutil.Process(_server_pid())
    forkserver._this.server.link.close()
    process.wait(60)


if __name__ == "__main__":
    globals()[sys.argv[1]]()
