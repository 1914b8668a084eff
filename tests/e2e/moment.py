"""A signal to a process of a server at a certain moment of its life, however fast or busy the machine is.

The process sends it to itself, by an audit hook (sys.addaudithook) that every Python program with this environment has.
"""

import os
import signal
from collections.abc import Mapping
from pathlib import Path

import psutil

from tests.waiting import wait_until

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
"""The engine process has its life lines and begins to read the model."""
FORKSERVER_IMPORTS = ("import", "server.engine.scheduler", None)
"""The forkserver has its life line and is about to have imported everything."""
FORKSERVER_FORKS = ("os.fork", "", "-c")
"""The API process has asked it for the engine process, and waits."""
API_READS_TOKENIZER = ("open", "tokenizer.json", None)
"""The API process has started its helpers, and asks none of them for an engine yet."""


class Moment:
    """Comes once, in the first process that gets there."""

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
            folder: an empty one.
            event: of Python's table of audit events.
            ending: of the module's or the file's name.
            process: its name in `multiprocessing`, or of its program (`sys.argv`), if it matters.
        """
        self._folder = folder
        self._note = folder / "pid"
        facts = {"event": event, "ending": ending, "process": process, "number": int(signal_number)}
        (folder / "sitecustomize.py").write_text(_HOOK.format(note=str(self._note), **facts))

    @property
    def environment(self) -> Mapping[str, str]:
        """Of the programs that are meant."""
        return environment_of(self._folder)

    def wait_stopped(self) -> psutil.Process:
        """The process, once it has stopped itself."""
        wait_until(lambda: self._note.exists() and self._note.read_text())
        process = psutil.Process(int(self._note.read_text()))
        wait_until(lambda: process.status() == psutil.STATUS_STOPPED)
        return process


def environment_of(folder: Path) -> Mapping[str, str]:
    """Of programs that are meant if there is a `Moment` of that folder by the time they begin."""
    return {"PYTHONPATH": os.pathsep.join([str(folder), *filter(None, [os.environ.get("PYTHONPATH")])])}
