"""Uses a forkserver as a launcher does. `test_forkserver.py` runs this program."""

import atexit
import json
import multiprocessing
import os
import signal
import sys
import time
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from multiprocessing import shared_memory
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import psutil

from startup.processes import forkserver, forkserver_watch, interpreter, new_program

_CONTEXT = multiprocessing.get_context("spawn")
_IMPORT = "tests.startup.processes.imported_with_file"


def _start(target: Any, *args: Any) -> Any:
    process = _CONTEXT.Process(target=target, args=args)
    process.start()
    return process


def _end(target: Any, *args: Any) -> int | None:
    process = _start(target, *args)
    process.join(60)
    code: int | None = process.exitcode
    return code


def _server_pid() -> int:
    return forkserver._server.pid


def _raise() -> None:
    raise ValueError


def healthy() -> Any:
    """The answers of functions that use one forkserver."""
    forkserver.ensure_forkserver(_IMPORT)
    return {each.__name__: each() for each in (ends, exit_functions, contexts, shared, family)}


def ends() -> Any:
    sleeping = _start(time.sleep, 100)
    assert sleeping.exitcode is None
    sleeping.kill()
    sleeping.join(60)
    codes = {"returns": _end(os.getpid), "exits with 7": _end(sys.exit, 7), "raises": _end(_raise)}
    return codes | {"is killed": sleeping.exitcode}


def refused() -> Any:
    """After an import that refuses forks: for two threads, whether their processes are forks."""
    forkserver.ensure_forkserver("tests.startup.processes.refuses_forks")
    with ThreadPoolExecutor(1) as thread:
        return {"on the main thread": _is_fork(), "on another thread": thread.submit(_is_fork).result()}


def _is_fork() -> bool:
    ours, theirs = multiprocessing.Pipe()
    _start(_describe, theirs, 0)
    return bool(ours.recv()["parent"] == _server_pid())


def exit_functions() -> Any:
    """The exit functions that a process runs. It runs its own, and not those of the forkserver."""
    ours, theirs = multiprocessing.Pipe()
    process = _start(_register, theirs)
    process.join(60)
    return [ours.recv(), ours.poll(), process.exitcode]


def _register(pipe: Connection) -> None:
    atexit.register(pipe.send, "its own")


def family() -> Any:
    ours, theirs = multiprocessing.Pipe()
    sys.argv = ["a word"]
    _start(_describe, theirs, 1)
    facts = [ours.recv(), ours.recv()]
    return {**facts[0], "parents": [fact["parent"] for fact in facts], "forkserver": _server_pid()}


def _describe(pipe: Connection, depth: int) -> None:
    pipe.send({"parent": os.getppid(), "words": sys.argv, "stdin": str(Path("/proc/self/fd/0").readlink())})
    if depth:
        assert _end(_describe, pipe, depth - 1) == 0


def contexts() -> Any:
    """The parents of processes. Since Python 3.14, `forkserver` is the default of `ProcessPoolExecutor`."""
    found = {}
    for method in ("spawn", "forkserver"):
        ours, theirs = multiprocessing.Pipe()
        process = multiprocessing.get_context(method).Process(target=_send_parent, args=(theirs,))  # type: ignore[attr-defined]
        process.start()
        found[method] = ours.recv()
        process.join()
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("forkserver")) as pool:
        found["pool"] = pool.submit(os.getppid).result()
    words = [" ".join(child.cmdline()) for child in psutil.Process().children()]
    programs = sorted(name for name in ("forkserver", "resource_tracker") for line in words if f"{name} import" in line)
    return {**found, "server": _server_pid(), "programs": programs}


def _send_parent(pipe: Connection) -> None:
    pipe.send(os.getppid())


def shared() -> Any:
    queue, counter = _CONTEXT.Queue(), _CONTEXT.Value("i", 0)
    memory = shared_memory.SharedMemory(create=True, size=8)
    processes = [_start(_share, queue, counter, memory.name) for _ in range(2)]
    numbers = [queue.get(timeout=60) for _ in processes]
    for process in processes:
        process.join(60)
    value = memory.buf[0]
    memory.close()
    memory.unlink()
    return {"from the queue": numbers, "counter": counter.value, "memory": value}


def _share(queue: Any, counter: Any, name: str) -> None:
    for _ in range(10):
        with counter.get_lock():
            counter.value += 1
    memory = shared_memory.SharedMemory(name)
    memory.buf[0] = 5
    memory.close()
    queue.put(3)


def file_numbers() -> Any:
    """Whether the import's file has a high number, and what a child reads from our file with this number."""
    forkserver.ensure_forkserver(_IMPORT)
    ours, theirs = multiprocessing.Pipe()
    _start(_send_number, theirs)
    number = ours.recv()
    read_fd, write_fd = os.pipe()
    os.write(write_fd, b"text")
    os.dup2(read_fd, number)
    _start(_read, theirs, Connection(number, writable=False))
    theirs.close()
    return number > 200, ours.recv()


def _send_number(pipe: Connection) -> None:
    pipe.send(sys.modules[_IMPORT].FILE)


def _read(pipe: Connection, sent: Connection) -> None:
    pipe.send(os.read(sent.fileno(), 10).decode())


def dormant() -> Any:
    """For two starts: whether the dormant forkserver forks. In the second start, it was killed."""
    found = []
    for is_killed in (False, True):
        new_program.fork_dormant(lambda: None, {})
        pid = new_program._dormant.pid
        if is_killed:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
        forkserver.ensure_forkserver("decimal")
        found.append([_server_pid() == pid, _end(sys.exit, 7)])
        forkserver.kill()
        forkserver._server = None
    return found


def untested() -> Any:
    """The exit code of a process after the trial. The forkserver and the resource tracker are children."""
    interpreter.NEWEST_TESTED = (3, 10)  # type: ignore[misc]
    forkserver.ensure_forkserver("decimal")
    return [_end(sys.exit, 7), len(psutil.Process().children())]


def untested_and_broken() -> Any:
    interpreter.NEWEST_TESTED = (3, 10)  # type: ignore[misc]
    start, forkserver.ForkedPopen.start = forkserver.ForkedPopen.start, None  # type: ignore[method-assign,assignment]
    try:
        forkserver.ensure_forkserver("decimal")
    except OSError as err:
        forkserver.ForkedPopen.start = start  # type: ignore[method-assign]
        is_named = "is not tested, and a trial process fails: TypeError(" in str(err)
        return [is_named, _end(sys.exit, 7), len(psutil.Process().children())]
    return None


def killed() -> Any:
    """Whether a process outlives the forkserver, and the exit codes of two later ones."""
    forkserver.ensure_forkserver("decimal")
    process = _start(time.sleep, 100)
    forkserver.kill()
    is_running = process.exitcode is None and psutil.pid_exists(process.pid)
    process.kill()
    process.join(60)
    return {"running": is_running, "later": [_end(os.getpid), _end(os.getpid)]}


def does_not_answer() -> Any:
    """Exit codes of two processes. The first finds the forkserver stopped, and the second finds it killed."""
    forkserver_watch._MOST_STOPPED_POLLS = 1  # type: ignore[misc]
    forkserver.ensure_forkserver("decimal")
    os.kill(forkserver._server.pid, signal.SIGSTOP)
    return [_end(sys.exit, 7), _end(sys.exit, 7)]


def alone() -> Any:
    """No process can send requests to the forkserver any more."""
    forkserver.ensure_forkserver("decimal")
    process = psutil.Process(_server_pid())
    forkserver._server.link.close()
    process.wait(60)
    return "ended"


if __name__ == "__main__":
    answer = globals()[sys.argv[1]]()
    print(json.dumps(answer))
