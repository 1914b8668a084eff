"""Records how vLLM's processes end: a process records its exception, its parent a signal that ended it."""

import atexit
import io
import os
import sys
from multiprocessing import get_context, popen_fork, process
from multiprocessing.reduction import ForkingPickler
from pathlib import Path
from typing import Any, Final

from startup.reports.crash.output_record import OutputRecord, ProcessEnds
from startup.vllm.journal import this_start

_FAILED: Final = 1


def record_spawns(record: OutputRecord) -> None:
    """From now on, records exceptions that end processes of `spawn`, and signals that end new programs."""
    ends = ProcessEnds(record)
    poll = popen_fork.Popen.poll

    def poll_and_record(self: Any, flag: int = os.WNOHANG) -> int | None:
        was_running = self.returncode is None
        code = poll(self, flag)
        if was_running and code is not None:
            ends.add(self.pid, code)
        return code

    def reduce(self: process.BaseProcess, protocol: Any) -> Any:
        buffer = io.BytesIO()
        ForkingPickler(buffer, 2).dump(object.__reduce_ex__(self, 2))
        return _restore, (str(record.folder), self.name, buffer.getvalue())

    popen_fork.Popen.poll = poll_and_record  # type: ignore[method-assign]
    get_context("spawn").Process.__reduce_ex__ = reduce  # type: ignore[method-assign,assignment]


def _restore(folder: str, name: str, reduced: bytes) -> process.BaseProcess:
    """Called in the child. Returns the process object, which will record an exception that ends the child."""
    record = this_start.record
    if record is None:  # in a new program, which itself starts such programs
        record = OutputRecord(Path(folder))
        record.begin_process(name)
        record_spawns(record)
    make, arguments, attributes, *_ = ForkingPickler.loads(reduced)
    restored: process.BaseProcess = make(*arguments)
    vars(restored).update(attributes)
    _record_exception(restored, record)
    return restored


def _record_exception(child: process.BaseProcess, record: OutputRecord) -> None:
    """Makes the child record its exception instead of printing it, and exit before libraries report leaks."""
    run = child.run

    def run_and_record() -> None:
        try:
            run()
        except Exception as err:
            sys.stderr.write(record.describe_exception(err, child.name))
            atexit.register(os._exit, _FAILED)
            raise SystemExit(_FAILED) from err

    child.run = run_and_record  # type: ignore[method-assign]
