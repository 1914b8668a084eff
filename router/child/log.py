"""Relays output of the models' processes to standard error, with the model's name. Keeps the last lines."""

import asyncio
import json
import os
import threading
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from typing import Final

from base.json_depth import read_json
from envs.redaction import hide_quoted
from startup.errors import StartupError
from startup.logs.formatters import CONTROL_CHARACTERS, escape_controls
from startup.logs.options import LogFormat
from startup.reports.crash.explanation import explainer, shown

_CHUNK: Final = 1 << 16
_LONGEST_LINE: Final = 1 << 14
_MOST_KEPT: Final = 1 << 16
_MOST_WAITING: Final = 1 << 22
"""The most bytes that are queued while standard error is blocked. Further lines are dropped."""
_NUM_LAST_LINES: Final = 3
_LAST_LINES_CHARACTERS: Final = 600


class LogRelay:
    """Writes the lines of all models on its own thread, so that no event loop waits for standard error."""

    def __init__(self, log_format: LogFormat, fd: int = 2, *, has_names: bool = True) -> None:
        """`has_names`: whether lines get the name of their model. False for a router's only model."""
        self.log_format = log_format
        self.has_names = has_names
        self.explainer = explainer()  # its tables take longer than a turn of the event loop may
        self._fd = fd
        self._waiting: deque[bytes] = deque()
        self._num_bytes = 0
        self._num_dropped = 0
        self._is_closed = False
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._run, name="child-log", daemon=True)
        self._thread.start()

    def write(self, lines: Sequence[bytes]) -> None:
        """Queues these lines. Called on the event loop."""
        block = b"".join(lines)
        with self._changed:
            if self._num_bytes + len(block) > _MOST_WAITING:
                self._num_dropped += len(lines)
                return
            self._waiting.append(block)
            self._num_bytes += len(block)
            self._changed.notify()

    def close(self, timeout_s: float = 1.0) -> None:
        """Waits at most `timeout_s` until the queued lines are written."""
        with self._changed:
            self._is_closed = True
            self._changed.notify()
        self._thread.join(timeout_s)

    def _run(self) -> None:
        while (block := self._next()) is not None:
            left = memoryview(block)
            with suppress(OSError):  # no process reads it any more
                while left:
                    left = left[os.write(self._fd, left) :]

    def _next(self) -> bytes | None:
        with self._changed:
            self._changed.wait_for(lambda: self._waiting or self._is_closed)
            if not self._waiting:
                return None
            block = b"".join(self._waiting)
            self._waiting.clear()
            self._num_bytes = 0
            if self._num_dropped:
                block += encode_line(
                    f"{self._num_dropped} lines of models were left out: standard error was not read in time",
                    "router",
                    self.log_format,
                )
                self._num_dropped = 0
            return block


class ChildLog:
    """Reads the output of one process from a pipe, whose read end it owns. Used on the event loop."""

    def __init__(self, model: str, relay: LogRelay) -> None:
        self._model = escape_controls(model) if relay.has_names else ""
        self._relay = relay
        self._read_fd = -1
        self._rest = b""
        self._kept: deque[bytes] = deque()
        self._num_kept = 0
        self._ended = asyncio.Event()
        self._loop = asyncio.get_running_loop()

    @contextmanager
    def open(self) -> Iterator[int]:
        """Yields the write end of the pipe, for a process that is started in the block. Raises OSError."""
        self._read_fd, write_fd = os.pipe()
        os.set_blocking(self._read_fd, False)
        self._loop.add_reader(self._read_fd, self._read)
        try:
            yield write_fd
        finally:
            os.close(write_fd)

    async def close(self, timeout_s: float) -> None:
        """Waits at most `timeout_s` until all processes that write to the pipe have ended."""
        if self._read_fd < 0:
            return
        with suppress(TimeoutError):
            await asyncio.wait_for(self._ended.wait(), timeout_s)
        if not self._ended.is_set():
            self._end()

    def explain_failure(
        self, arguments: Sequence[str] = (), *, is_known_only: bool = False, has_served: bool = False
    ) -> StartupError:
        """Explains a failure by the text of `vllm-cli explain`, otherwise by the exception or the last lines.

        The text is empty if the log contains no reason.

        Args:
            arguments: the command line of the process. Secrets in it are hidden in lines that quote them.
            is_known_only: whether only a known cause counts, for example after a signal.
            has_served: whether the lines may contain clients' texts, which no other client must see.
        """
        lines = [line.decode(errors="replace") for line in self._kept]
        cause = self._relay.explainer.find_cause(lines)
        if cause is not None and cause.name is not None and not cause.is_guess:
            text = cause.title if has_served else hide_quoted(" ".join(cause.lines()), arguments)
            return StartupError(text, cause=cause.name)
        if is_known_only or has_served:
            return StartupError("")
        last = [line.strip() for line in lines if line.strip()][-_NUM_LAST_LINES:]
        if cause is not None and not cause.is_waiting:
            last = [cause.text]
        joined = " / ".join(map(shown, last))
        text = joined[-_LAST_LINES_CHARACTERS:]
        return StartupError(hide_quoted(text, arguments))

    def _read(self) -> None:
        """Reads one chunk in each turn of the event loop, even if more output is in the pipe."""
        try:
            chunk = os.read(self._read_fd, _CHUNK)
        except BlockingIOError:
            return
        if not chunk:
            self._end()
            return
        *lines, rest = (self._rest + chunk).split(b"\n")
        while len(rest) > _LONGEST_LINE:
            lines.append(rest[:_LONGEST_LINE])
            rest = rest[_LONGEST_LINE:]
        self._rest = rest
        self._take(lines)

    def _take(self, lines: Sequence[bytes]) -> None:
        """Keeps and relays lines. If a progress bar has several states in a line, only the last one stays."""
        relayed = []
        for line in lines:
            state = line.rstrip(b"\r").rpartition(b"\r")[2][:_LONGEST_LINE]
            self._keep(state)
            text = state.decode(errors="replace")
            relayed.append(encode_line(text, self._model, self._relay.log_format))
        if relayed:
            self._relay.write(relayed)

    def _keep(self, line: bytes) -> None:
        self._kept.append(line)
        self._num_kept += len(line) + 1
        while self._num_kept > _MOST_KEPT:
            self._num_kept -= len(self._kept.popleft()) + 1

    def _end(self) -> None:
        self._loop.remove_reader(self._read_fd)
        os.close(self._read_fd)
        if self._rest:
            self._take([self._rest])
            self._rest = b""
        self._ended.set()


def encode_line(line: str, model: str, log_format: LogFormat) -> bytes:
    """Puts the model's name before a line of output. In JSON, the name is the member `model`."""
    if log_format != "json":
        return (f"[{model}] {line}\n" if model else f"{line}\n").encode(errors="replace")
    when = datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
    record = {"time": when, "level": "INFO", "logger": "output", "message": escape_controls(line)}
    if line.startswith("{"):
        with suppress(ValueError):
            record = read_json(line)
    text = json.dumps({**record, "model": model} if model else record, ensure_ascii=False)
    return CONTROL_CHARACTERS.sub(lambda found: f"\\u{ord(found[0]):04x}", text).encode(errors="replace") + b"\n"
