"""Runs a job in a helper process: prefetch, downloads, archives of compiled models.

A helper process is a new interpreter without the module `site`, so no folder of the user is on its import
path. The helper does not share the launcher's interpreter lock. The launcher stops a helper by killing it.

The helper reads its job from standard input, because the job may contain a token. It writes events to a pipe,
each with its length in front. The job and the events are pickled, because both ends run the same code.
"""

import math
import os
import pickle
import select
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from threading import Lock
from typing import Final

from envs.environment import snapshot
from startup.processes import death_pipe, group_signals

Send = Callable[[object], None]
"""Sends an event from any thread of the helper. Blocks while 64 KiB of events wait for the launcher."""

_ROOT: Final = str(Path(__file__).parents[2])
_INSTALLED: Final = ("site-packages", "dist-packages")
_CODE: Final = "import sys; sys.path += sys.argv[5:]; from startup.processes.helper import main; main()"
_LENGTH_BYTES: Final = 4
_POLLED_EVERY_S: Final = 0.1
_LONGEST_END_S: Final = 5.0
"""Seconds to wait until a killed process has ended. A volume that does not respond may delay the end."""


class HelperEndedError(Exception):
    """The helper has ended, and no events are left. The message names the error, signal or exit code."""


class Helper:
    """The launcher's handle of a helper process. The process ends with the thread that created the handle.

    Only one thread may call `receive`. Any thread may call `kill`.
    """

    def __init__(self, name: str, function: str, job: object, *, is_idle: bool = False) -> None:
        """
        Args:
            name: the process is called `vllm-NAME`.
            function: `module:function`, called in the helper with the job and a `Send`. `ps` shows it.
            job: an object whose classes the helper can import.
            is_idle: whether the helper runs only while processors are idle.

        Raises:
            OSError: the helper cannot be started.
        """
        from subprocess import PIPE, Popen  # noqa: PLC0415 - not in the helper, whose start is timed

        arguments = (function, name, str(os.getpid()), "idle" if is_idle else "", *_import_path())
        with group_signals.blocked():  # until the helper ignores them
            self._process = Popen(
                [sys.executable, "-I", "-S", *["-O"] * sys.flags.optimize, "-c", _CODE, *arguments],
                env=snapshot(),  # without a copy, the start fails if another thread changes a variable meanwhile
                stdin=PIPE,
                stdout=PIPE,
            )
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self.pid = self._process.pid
        self._events = self._process.stdout
        self._poll = select.poll()
        self._poll.register(self._events, select.POLLIN)
        self._received = bytearray()
        self._is_killed = False
        with suppress(BrokenPipeError), self._process.stdin as stdin:
            pickle.dump(job, stdin)

    def receive(self, timeout_s: float = math.inf) -> object | None:
        """Waits for the next event and returns it. Returns None if no event has come after this time.

        Raises:
            HelperEndedError: the helper has ended and all its events were received, or it was killed.
        """
        end_s = time.monotonic() + timeout_s
        while (event := self._take()) is None:
            left_s = min(end_s - time.monotonic(), _POLLED_EVERY_S)
            if self._poll.poll(max(left_s, 0.0) * 1000):
                if not (chunk := os.read(self._events.fileno(), 1 << 16)):
                    raise HelperEndedError(self._wait())
                self._received += chunk
            elif self._is_killed:
                raise HelperEndedError("killed")
            elif time.monotonic() >= end_s:
                return None
        if isinstance(event, HelperEndedError):
            raise event
        return event

    def kill(self) -> None:
        self._is_killed = True
        self._process.kill()

    def close(self) -> None:
        """Kills the helper and returns once it has ended. Call it when no thread calls `receive`."""
        self.kill()
        self._wait()
        self._events.close()

    def _take(self) -> object | None:
        """Takes the next event from the bytes read so far. Returns None if the event is incomplete."""
        end = _LENGTH_BYTES + int.from_bytes(self._received[:_LENGTH_BYTES], "big")
        if len(self._received) < max(end, _LENGTH_BYTES + 1):
            return None
        event: object = pickle.loads(memoryview(self._received)[_LENGTH_BYTES:end])
        del self._received[:end]
        return event

    def _wait(self) -> str:
        """Waits until the helper has ended. Returns its signal or exit code as text."""
        from subprocess import TimeoutExpired  # noqa: PLC0415 - as above

        with suppress(TimeoutExpired):
            self._process.wait(_LONGEST_END_S)
        code = self._process.returncode
        return f"killed by signal {-code}" if code is not None and code < 0 else f"exit code {code}"


def _import_path() -> list[str]:
    """The helper's import path after the standard library: this project and the installed packages."""
    from importlib.util import find_spec  # noqa: PLC0415 - as above

    installed = [path for path in sys.path if Path(path).name in _INSTALLED]
    spec = find_spec("huggingface_hub")
    folders = [_ROOT]
    if spec is not None and spec.origin is not None:
        folders.append(str(Path(spec.origin).parents[1]))
    return list(dict.fromkeys((*folders, *installed)))


def main() -> None:
    """The helper's program: runs the job from standard input, and exits."""
    function, name, parent_pid, is_idle = sys.argv[1:5]
    death_pipe.follow_parent(int(parent_pid))
    group_signals.ignore()
    if is_idle:
        os.nice(19)
        with suppress(OSError):  # some containers forbid it
            os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))
    with suppress(OSError):
        Path("/proc/self/comm").write_text(f"vllm-{name}", encoding="ascii")
    fd, lock = os.dup(1), Lock()
    with suppress(OSError):  # standard error is closed
        os.dup2(2, 1)  # what libraries print must not look like an event

    def send(event: object) -> None:
        content = pickle.dumps(event)
        message = len(content).to_bytes(_LENGTH_BYTES, "big") + content
        try:
            with lock:
                while message:
                    message = message[os.write(fd, message) :]
        except BrokenPipeError:
            os._exit(0)  # nobody reads more events

    try:
        module, _, attribute = function.partition(":")
        run = getattr(__import__(module, fromlist=[attribute]), attribute)
        run(pickle.load(sys.stdin.buffer), send)
    except Exception as err:  # noqa: BLE001 - the boundary of the process: the launcher gets the error
        send(HelperEndedError(f"{type(err).__name__}: {err}"))
    os._exit(0)  # a thread may still wait for the disk or the network
