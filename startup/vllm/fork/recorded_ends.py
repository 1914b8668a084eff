"""Records how vLLM's processes end: exceptions in these processes, signals in the one that reaps them."""

import atexit
import io
import os
from multiprocessing import context, popen_fork, process
from multiprocessing.reduction import ForkingPickler
from pathlib import Path
from typing import Any, Final

from startup.crash.output_record import OutputRecord, ProcessEnds

_waitpid: Final = os.waitpid
_FAILED: Final = 1


def record_forks(record: OutputRecord) -> None:
    """From now on, this process, the forkserver, records the ends of its children when it reaps them.

    Nobody else learns them: a child's own parent may wait only for its connection to close.
    """
    ends = ProcessEnds(record, are_forks=True)

    def wait_and_record(pid: int, options: int) -> tuple[int, int]:
        ended, status = _waitpid(pid, options)
        if ended:
            ends.add(ended, os.waitstatus_to_exitcode(status))
        return ended, status

    os.waitpid = wait_and_record


def stop_recording_forks() -> None:
    """Undoes `record_forks`, in a child."""
    os.waitpid = _waitpid


def record_spawns(record: OutputRecord) -> None:
    """From now on, the ends of processes are recorded that this process starts as new programs."""
    ends = ProcessEnds(record)
    poll = popen_fork.Popen.poll

    def poll_and_record(self: Any, flag: int = os.WNOHANG) -> int | None:
        was_running = self.returncode is None
        code = poll(self, flag)
        if was_running and code is not None:
            ends.add(self.pid, code)
        return code

    def reduce(self: process.BaseProcess, protocol: Any) -> Any:
        return reduce_spawned(object.__reduce_ex__(self, 2), self.name, record)

    popen_fork.Popen.poll = poll_and_record  # type: ignore[method-assign]
    context.SpawnProcess.__reduce_ex__ = reduce  # type: ignore[method-assign,assignment]


def reduce_spawned(reduced: Any, name: str, record: OutputRecord) -> Any:
    """What is pickled of a process object, so that the new program records its end."""
    return _restore_spawned, (str(record.folder), name, dump(reduced))


def dump(reduced: Any) -> bytes:
    """Pickles what `__reduce_ex__` has returned, for a later part of the child's start."""
    buffer = io.BytesIO()
    ForkingPickler(buffer, 2).dump(reduced)
    return buffer.getvalue()


def restore(reduced: bytes, record: OutputRecord | None) -> process.BaseProcess:
    """Runs in the child: the process object, which records the exception that ends it."""
    make, arguments, attributes, *_ = ForkingPickler.loads(reduced)
    restored: process.BaseProcess = make(*arguments)
    vars(restored).update(attributes)
    if record is not None:
        _record_exception(restored, record)
    return restored


def _restore_spawned(folder: str, name: str, reduced: bytes) -> process.BaseProcess:
    """Runs in a child that is a new program, which starts such programs itself."""
    record = OutputRecord(Path(folder))
    record.begin_process(name)
    record_spawns(record)
    return restore(reduced, record)


def _record_exception(child: process.BaseProcess, record: OutputRecord) -> None:
    """Instead of multiprocessing, which would print it; libraries report no leaks then."""
    run = child.run

    def run_and_record() -> None:
        try:
            run()
        except Exception as err:
            record.add_exception(err, child.name)
            atexit.register(os._exit, _FAILED)
            raise SystemExit(_FAILED) from err

    child.run = run_and_record  # type: ignore[method-assign]
