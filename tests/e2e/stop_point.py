"""Stops a process of a server at a fixed point of its start, independently of the machine's speed.

The process sends the signal to itself, in an audit hook (sys.addaudithook). Every Python program with
`environment` installs the hook.
"""

import os
import signal
from collections.abc import Mapping
from pathlib import Path

import psutil

from tests.support.waiting import wait_until

_HOOK = """
import os, sys

def hook(event, args):
    if event != {event!r} or not "".join(map(str, args[:1])).endswith({ending!r}):
        return
    process = getattr(sys.modules.get("multiprocessing.process"), "current_process", lambda: None)()
    if {process!r} not in (None, getattr(process, "name", ""), sys.argv[0]):
        return
    try:
        fd = os.open({note!r}, os.O_CREAT | os.O_EXCL | os.O_WRONLY)
    except FileExistsError:
        return
    os.write(fd, str(os.getpid()).encode())
    os.close(fd)
    os.kill(os.getpid(), {number})

sys.addaudithook(hook)
"""

ENGINE_LOADS = ("open", "generation_config.json", "vllm-cli-engine")
"""The engine process has its death pipes and begins to read the model."""
FORKSERVER_IMPORTS = ("import", "server.engine.scheduler", None)
"""The forkserver has its death pipe and has almost finished its imports."""
FORKSERVER_FORKS = ("os.fork", "", "-c")
"""The API process has requested the engine process from the forkserver and waits for it."""
API_READS_TOKENIZER = ("open", "tokenizer.json", None)
"""The API process has started its helper processes, but has not requested the engine process yet."""


class StopPoint:
    """Sends one signal, in the first process that reaches the point."""

    def __init__(
        self,
        folder: Path,
        event: str,
        ending: str,
        process: str | None = None,
        *,
        signal_number: int = signal.SIGSTOP,
    ) -> None:
        """
        Args:
            folder: an empty folder for the hook. event: a name from Python's table of audit events. ending:
            the end of the event's first argument, which is the name of a module or file. process: the name
            of the process in `multiprocessing`, or its `sys.argv[0]`. None means any process.
        """
        self._folder = folder
        self._note = folder / "pid"
        facts = {"event": event, "ending": ending, "process": process, "number": int(signal_number)}
        (folder / "sitecustomize.py").write_text(_HOOK.format(note=str(self._note), **facts))

    @property
    def environment(self) -> Mapping[str, str]:
        """Variables with which a program installs the hook."""
        return stop_environment(self._folder)

    def rearm(self) -> None:
        """Stops also the next process that reaches the point."""
        self._note.unlink(missing_ok=True)

    def wait_stopped(self) -> psutil.Process:
        """Waits until the process has stopped itself."""
        wait_until(lambda: self._note.exists() and self._note.read_text())
        process = psutil.Process(int(self._note.read_text()))
        wait_until(lambda: process.status() == psutil.STATUS_STOPPED)
        return process


def stop_environment(folder: Path) -> Mapping[str, str]:
    """Variables of programs that run the folder's `sitecustomize.py`, which a `StopPoint` may write later."""
    return {"PYTHONPATH": os.pathsep.join([str(folder), *filter(None, [os.environ.get("PYTHONPATH")])])}
