"""The standby's handle of the template process of one kind."""

import logging
import os
import socket
import subprocess
import sys
import time
from typing import Final

from base.machine.processes import pss_bytes
from startup.processes.back_off import BackOff
from startup.standby.sockets import module_folder
from startup.standby.status import TemplateState, TemplateStatus
from startup.standby.template import ENDED, INCOMPLETE, READY, STALE, STARTED

logger = logging.getLogger(__name__)

_END_S: Final = 5.0
_MAX_MESSAGE_BYTES: Final = 4096


class TemplateProcess:
    """One kind of template. Its process is started again if it has ended or its imports are out of date."""

    def __init__(self, kind: str, models: tuple[str, ...]) -> None:
        self.kind = kind
        self.num_starts = 0
        self._servers: set[int] = set()
        """The pids of running servers that the current process has forked."""
        self.used_s = time.monotonic()
        """The time when a server was last forked, in monotonic seconds."""
        self.channel = socket.socket()
        self._models = models
        self._process: subprocess.Popen[bytes] | None = None
        self._predecessor: tuple[subprocess.Popen[bytes], socket.socket] | None = None
        """The earlier process and its channel. It forks servers until its successor has all imports."""
        self._retired: list[subprocess.Popen[bytes]] = []
        """Replaced processes that still report how their servers end."""
        self.state: TemplateState = "importing"
        self._import_s: float | None = None
        self._error: str | None = None
        self._due_s = 0.0
        self._ready_s: float | None = None
        """The time when the process became ready, in monotonic seconds. None if it is not ready yet."""
        self._back_off = BackOff()

    @property
    def is_running(self) -> bool:
        return self._process is not None

    @property
    def has_exited(self) -> bool:
        """Whether the process has ended. The channel does not show this end while a server keeps it open."""
        return self._process is not None and self._process.poll() is not None

    def start_if_due(self) -> socket.socket | None:
        """Starts the process if it is due. Returns the channel on which a new process sends messages."""
        self._retired = [process for process in self._retired if process.poll() is None]
        if self._process is not None or self.state == "over the memory limit" or time.monotonic() < self._due_s:
            return None
        self.channel, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        words = ["-m", "vllm_cli", "standby-template", self.kind, str(theirs.fileno()), *self._models]
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, *subprocess._args_from_interpreter_flags(), *words],  # type: ignore[attr-defined]
                cwd=module_folder(),
                stdin=subprocess.DEVNULL,
                pass_fds=[theirs.fileno()],
                start_new_session=True,
            )
        self.state, self._import_s, self._error, self._ready_s = "importing", None, None, None
        self.channel.setblocking(False)
        return self.channel

    def read_messages(self) -> None:
        """Reads the process's messages. A process that ended or must be replaced is started again later."""
        while self._process is not None:
            try:
                message = self.channel.recv(_MAX_MESSAGE_BYTES)
            except BlockingIOError:
                if not self.has_exited:
                    return
                message = b""
            word, _, detail = message.partition(b" ")
            if word == READY:
                self.state, self._import_s = "ready", float(detail)
                self._ready_s = time.monotonic()
                logger.info("%s: imported in %.1f s", self.kind, self._import_s)
                self._retire_predecessor()
            elif word == STARTED:
                self.num_starts += 1
                self.used_s = time.monotonic()
                self._servers.add(int(detail))
            elif word == ENDED:
                self._servers.discard(int(detail))
            elif word == STALE:
                self.close()
                self._import_again(os.fsdecode(detail))
            elif word == INCOMPLETE:
                self._retire_predecessor()
                self._predecessor, self._process = (self._process, self.channel), None
                self._servers.clear()
                self._import_again(os.fsdecode(detail))
            else:
                self._process_ended()

    def give_up(self, state: TemplateState) -> None:
        """Ends the process, which is not started again. `state` is the reason."""
        self.close()
        self.state = state

    def close(self) -> None:
        """Ends the process. If some of its servers run, ends only its forking.

        In the second case, the process stays to report how these servers end.
        """
        self._retire_predecessor()
        self.channel.close()
        if self._process is not None and self._servers:
            self._retired.append(self._process)
        elif self._process is not None:
            self._process.kill()
            self._process.wait()
        self._process = None
        self._servers.clear()

    def status(self) -> TemplateStatus:
        pid = self._process.pid if self._process is not None else None
        return TemplateStatus(
            kind=self.kind,
            state=self.state,
            pid=pid,
            import_s=self._import_s,
            num_starts=self.num_starts,
            memory_bytes=pss_bytes(pid) if pid is not None else 0,
            error=self._error,
        )

    def _import_again(self, reason: str) -> None:
        logger.info("%s: imported again, because %s", self.kind, reason)
        self.state, self._due_s = "importing", 0.0

    def _process_ended(self) -> None:
        process, self._process = self._process, None
        assert process is not None
        self.channel.close()
        code = process.wait(_END_S)
        self.state, self._error = "failed", f"its process ended with exit code {code}"
        self._servers.clear()
        now = time.monotonic()
        pause_s = self._back_off.take_s(0.0 if self._ready_s is None else now - self._ready_s)
        self._due_s = now + pause_s
        logger.warning("%s: %s. It is started again in %g s", self.kind, self._error, pause_s)

    def _retire_predecessor(self) -> None:
        """Stops the predecessor's forking. The predecessor reports how its servers end, then ends itself."""
        if self._predecessor is not None:
            process, channel = self._predecessor
            channel.close()
            self._retired.append(process)
            self._predecessor = None
