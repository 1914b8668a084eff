"""Records standard output and standard error of a server's processes, and how the processes end.

All processes append to one file, the output record, which has their lines in order. If the server crashes,
the cause is searched for in this file. The file lacks output of compiled code, which does not pass through
Python.
"""

import faulthandler
import fcntl
import os
import re
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from itertools import takewhile
from pathlib import Path
from typing import Any, Final, NamedTuple

from base.machine.descriptors import move_up
from base.machine.memory import NOT_BY_OOM_KILLER, OomWatch
from base.machine.processes import EndWatch, is_alive
from base.wording import signal_name
from startup.errors import is_of_machine

_FILE: Final = "output.log"
_APPENDED: Final = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC
_SHORTENED: Final = "shortened"
"""The file that exists while terminals get short tracebacks. Each short traceback adds a byte to it."""
_MOST_MESSAGE_LINES: Final = 2
_MOST_BYTES: Final = 8 << 20
"""The size above which the middle of the file is removed."""
KEPT_BYTES: Final = 1 << 20
"""How many bytes of the beginning of the output are always kept, and of its end."""
LEFT_OUT: Final = "… the middle of the log is left out …\n"
_LAST_PHASE: Final = "its last phase was "
"""Beginning of a message about a process that has ended. The name of one of vLLM's spans follows."""
_WITH_THREADS: Final = "it was forked from a process with several threads"
"""A reason in a message about an end, which shows a fault of this program."""
_PHASE: Final = "Phase: "
_OF_MACHINE: Final = "Error of the machine"
"""A line in the file of a process's facts: `is_of_machine` was true for an error."""
_PROCESS: Final = "Process "
"""Beginning of the line before the traceback of an exception that ends a process."""
_TRACEBACK: Final = "Traceback (most recent call last)"
_OF_ERRORS: Final = ("ERROR", "CRITICAL", "Traceback", "rror:", "xception")
"""Texts of errors. Once the server is ready, only output that contains one of them is recorded."""
_FRAME: Final = re.compile(r'(  File "[^"]{1,400}", line \d{1,8}) in (\S{1,120})')
_STACK: Final = "Current thread "
"""The first words of the stack of the thread that got the signal. A stack begins with the innermost call."""
ANY_STACK: Final = (_STACK, "Thread ")
"""The first words of any thread's stack. Python writes the main thread's stack last."""
STACK_SIGNAL: Final = signal.SIGRTMIN + 5
"""The signal on which a process writes the stacks of all its threads. vLLM's programs do not use it."""
_POLITE: Final = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
"""Signals with which the launcher and vLLM end processes on purpose."""
_BY_WHOM: Final = {True: ", by the kernel's OOM killer", False: NOT_BY_OOM_KILLER, None: ""}


class ProcessState(NamedTuple):
    """Facts that a process has recorded about itself."""

    name: str
    parent_pid: int
    phase: str
    """The innermost running function of vLLM's timed functions, such as `loading_cpu`. May be empty."""
    stack: list[str]
    """Lines of the stacks that Python wrote when the process got a signal."""


class OutputRecord:
    """The output record of one server. Each of its processes has an object of its own for the same folder.

    The methods raise no OSError, because problems of the record must not end the server.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.file = folder / _FILE
        self.process_name = ""
        """The name of this process in the record. Empty before `begin_process`."""
        self.keeps_only_errors = False
        """Set once the server is ready, because recording a line for each request would take time."""
        self._fd: int | None = None
        self._state_fd: int | None = None
        self._phase = ""
        self._last_traceback = ""
        self.is_cut_off = False
        """Whether this process could not write all of its output to the record, because the disk was full."""
        with suppress(OSError):
            self._fd = move_up(os.open(self.file, _APPENDED, 0o600))

    def begin_process(self, name: str, *, parent_pid: int = 0, is_watched: bool = True) -> None:
        """Copies this process's output to the record from now on.

        If a signal such as SIGSEGV ends this process, Python also writes the stacks of all threads to the
        record. If no process would read the record, Python writes this thread's stack to standard error
        instead.

        Args:
            name: the process's name in the digest.
            parent_pid: the parent with which the kernel ends this process. 0 if there is no such parent.
            is_watched: whether another process records how this process ends.
        """
        self.process_name = name
        for stream in (sys.stdout, sys.stderr):
            if stream is not None:
                _copy_writes(stream, self)
        self._state_fd = None
        with suppress(OSError):
            path = self._state_file(os.getpid())
            self._state_fd = move_up(os.open(path, _APPENDED, 0o600))
            os.write(self._state_fd, f"{name}\n{parent_pid}\n".encode())
            if not faulthandler.is_enabled():
                faulthandler.enable(self._state_fd if is_watched else 2, all_threads=is_watched)
            if is_watched:
                faulthandler.register(STACK_SIGNAL, self._state_fd)

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Records the phase that runs in the block, so that it is known if a signal ends this process."""
        outer, self._phase = self._phase, name
        self._note_phase(name)
        try:
            yield
        finally:
            self._phase = outer
            self._note_phase(outer)

    def _note_phase(self, name: str) -> None:
        self._add_fact(f"{_PHASE}{name}")

    def _note_kind(self, err: BaseException | None) -> None:
        if err is not None and is_of_machine(err):
            self._add_fact(_OF_MACHINE)

    def _add_fact(self, line: str) -> None:
        if self._state_fd is not None:
            with suppress(OSError):
                os.write(self._state_fd, f"{line}\n".encode())

    def append(self, text: str) -> bool:
        """Appends text to the file, whose middle is removed first if it is too long. False on a failure."""
        if self._fd is None:
            return False
        with suppress(OSError):
            if os.fstat(self._fd).st_size > _MOST_BYTES:
                self._remove_middle()
            data = text.encode("utf-8", "backslashreplace")
            if os.write(self._fd, data) == len(data):
                return True
        self.is_cut_off = True
        return False

    def _remove_middle(self) -> None:
        """Keeps the first and the last part of the file. Other processes may append to it meanwhile."""
        with suppress(OSError), self.file.open("r+b", buffering=0) as file:
            fd = file.fileno()
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)  # fails while another process does the same
            size = os.fstat(fd).st_size
            if size <= _MOST_BYTES:
                return
            head = os.pread(fd, KEPT_BYTES, 0)
            end = head.rfind(b"\n") + 1 or len(head)
            source = size - KEPT_BYTES
            source += os.pread(fd, KEPT_BYTES, source).find(b"\n") + 1
            end += os.pwrite(fd, LEFT_OUT.encode(), end)
            while piece := os.pread(fd, KEPT_BYTES, source):
                source += len(piece)
                end += os.pwrite(fd, piece, end)
            os.ftruncate(fd, end)

    def add_output(self, text: str, is_terminal: Callable[[], bool] = bool) -> str:
        """Adds output of this process. Returns the text to show, which may have a shortened traceback."""
        is_kept = (not self.keeps_only_errors or any(part in text for part in _OF_ERRORS)) and self.append(text)
        if _TRACEBACK in text:
            self._note_kind(sys.exception())
            self._last_traceback = text
            if is_kept and is_terminal() and self._note_shortened():
                return _without_frames(text)
        return text

    def shorten_tracebacks(self) -> None:
        """Makes all processes show tracebacks on terminals without frames. The record keeps the frames."""
        with suppress(OSError):
            (self.folder / _SHORTENED).touch(mode=0o600)

    def end_shortening(self) -> bool:
        """Makes all processes show whole tracebacks again. Returns whether a traceback was shortened."""
        path = self.folder / _SHORTENED
        with suppress(OSError):
            has_shortened = path.stat().st_size > 0
            path.unlink()
            return has_shortened
        return False

    def _note_shortened(self) -> bool:
        """Counts a shortened traceback. Returns False if tracebacks must not be shortened."""
        with suppress(OSError), (self.folder / _SHORTENED).open("r+b", buffering=0) as file:
            return file.write(b"x") == 1
        return False

    def describe_exception(self, err: BaseException, name: str) -> str:
        """The traceback of an exception that ends a process. Empty if this process has logged it already."""
        self._note_kind(err)
        lines = "".join(traceback.format_exception(err)).splitlines()
        return "" if lines[-1] in self._last_traceback else labelled([f"{_PROCESS}{name}:", *lines], name)

    def add_reason(self, err: BaseException, name: str) -> None:
        """Adds the exception that makes this process end other processes. Call this before they are ended."""
        lines = "".join(traceback.format_exception(err)).splitlines()
        if lines[-1] not in self._last_traceback:
            self.append(labelled(lines, name))

    def read_state(self, pid: int) -> "ProcessState":
        """The facts that a process has recorded about itself. `name` is empty if there are none."""
        lines: list[str] = []
        with suppress(OSError):
            lines = self._state_file(pid).read_text(encoding="utf-8", errors="replace").splitlines()
        phases = [line.removeprefix(_PHASE) for line in lines if line.startswith(_PHASE)]
        name, parent, *stack = lines if len(lines) > 1 else ("", "0")
        return ProcessState(name, int(parent), phases[-1] if phases else "", stack)

    def lines(self) -> Iterator[str]:
        """The output so far. A line that ends with a carriage return continues in the next one."""
        with suppress(OSError), self.file.open(encoding="utf-8", errors="replace", newline="") as file:
            for line in file:
                yield line.replace("\r\n", "\n").removesuffix("\n")

    def state_size(self, pid: int) -> int:
        """The size in bytes of the file with the process's facts, for `begin` in `read_stacks`."""
        with suppress(OSError):
            return self._state_file(pid).stat().st_size
        return 0

    def read_stacks(self, pid: int, begin: int) -> list[str]:
        """The lines that the process has added to the file with its facts after the byte `begin`."""
        with suppress(OSError):
            return self._state_file(pid).read_bytes()[begin:].decode("utf-8", "replace").splitlines()
        return []

    def begun_pids(self) -> list[int]:
        """The ids of all processes that have called `begin_process`. Some of them may have ended."""
        return [int(path.stem) for path in self.folder.glob("*.state")]

    def has_error_of_machine(self) -> bool:
        """Whether `is_of_machine` was true for an exception of a process, or the disk was full."""
        return self.is_cut_off or any(_OF_MACHINE in self.read_state(pid).stack for pid in self.begun_pids())

    def _state_file(self, pid: int) -> Path:
        return self.folder / f"{pid}.state"


def _copy_writes(stream: Any, record: OutputRecord) -> None:
    """Replaces the method `write` of a stream. Log handlers keep the stream itself, so it must stay."""
    below = getattr(stream, "below", stream)
    write: Callable[[str], int] = getattr(below.write, "without_record", below.write)
    is_terminal: Callable[[], bool] = getattr(stream, "isatty", bool)

    def write_and_record(text: str) -> int:
        return write(record.add_output(text, is_terminal))

    write_and_record.without_record = write  # type: ignore[attr-defined]
    below.write = write_and_record


def _without_frames(text: str) -> str:
    """Replaces a chain of tracebacks in the text by the message of its last exception."""
    shown: list[str] = []
    begin, prefix, num_message_lines = 0, "", -1
    for line in text.splitlines(keepends=True):
        before, is_head, _ = line.partition(_TRACEBACK)
        body = line.removeprefix(prefix)
        if is_head:
            begin = begin if prefix else len(shown) - (_PROCESS in "".join(shown[-1:]))
            del shown[begin:]
            prefix, num_message_lines = before or " ", -1
        elif not prefix:
            shown.append(line)
        elif body.strip() and (num_message_lines >= 0 or not body[:1].isspace()):
            num_message_lines += 1
            shown += [line] * (num_message_lines < _MOST_MESSAGE_LINES)
    return "".join(shown)


def labelled(lines: Iterable[str], name: str, pid: int | None = None) -> str:
    """Joins the lines and puts a label in vLLM's form before each, for this process or the process `pid`."""
    return "".join(f"({name} pid={os.getpid() if pid is None else pid}) {line}\n" for line in lines)


IN_MAPPED_FILE: Final = ", in a mapped file"
"""Comes after SIGBUS in a message about an end, because a file such as the weights became shorter."""
_SHARED_MEMORY: Final = "/dev/shm"
_FULL_BELOW: Final = 100
"""Shared memory counts as full if less than one of so many parts of it is free."""


class ProcessEnds:
    """Records how other processes end. It must be created before them, in the process that reaps them."""

    def __init__(self, record: OutputRecord, *, are_forks: bool = False) -> None:
        """`are_forks`: whether this process forks the other processes after its imports."""
        self._record = record
        self._are_forks = are_forks
        self._oom_watch = OomWatch()

    def add(self, pid: int, code: int) -> None:
        """Records the end of a process. `code` is its exit code, or -N after signal N."""
        state = self._record.read_state(pid)
        if code and state.name:
            self._record.append(labelled(self._describe(code, state), state.name, pid))

    def _describe(self, code: int, state: ProcessState) -> Iterator[str]:
        number = -code
        threads = f"; {_WITH_THREADS}" if self._are_forks and _num_threads() > 1 else ""
        crashed = (
            f"the process crashed with {_describe_signal(number)} (exit code: {code}){threads}" if code < 0 else ""
        )
        if state.phase:
            yield _log_line("INFO", f"{_LAST_PHASE}{state.phase}")
        if number in _POLITE:
            yield _log_line("INFO", f"ended by {signal_name(number)}")
        elif number == signal.SIGKILL and state.parent_pid and _is_ending(state.parent_pid):
            yield _log_line("INFO", f"ended with the process {state.parent_pid}, which has started it")
        elif number == signal.SIGKILL:
            yield _log_line("ERROR", f"killed by SIGKILL{_BY_WHOM[self._oom_watch.has_killed]} (exit code: {code})")
        elif frames := frames_of(state.stack) if number > 0 else ():
            yield f"Process {state.name}:"
            yield "Traceback (most recent call last):"
            yield from frames
            yield f"FatalSignal: {crashed}"
        elif number > 0:
            yield _log_line("ERROR", crashed)
        else:
            yield _log_line("ERROR", f"the process died unexpectedly with exit code {code}")


def _describe_signal(number: int) -> str:
    """The signal's name. For SIGBUS, also whether shared memory or another mapped file had no page."""
    if number != signal.SIGBUS:
        return signal_name(number)
    with suppress(OSError):
        shared = os.statvfs(_SHARED_MEMORY)
        if shared.f_bavail * _FULL_BELOW < shared.f_blocks:
            return f"{signal_name(number)}, with no room in {_SHARED_MEMORY}"
    return f"{signal_name(number)}{IN_MAPPED_FILE}"


def _is_ending(pid: int) -> bool:
    """Whether a process has ended or is ending. The kernel closes its pipes before it reports the end."""
    if not is_alive(pid):
        return True
    with closing(EndWatch(pid)) as watch:
        return watch.is_exiting()


def _num_threads() -> int:
    """The number of threads of this process, including threads of compiled code."""
    with suppress(OSError):
        return len(os.listdir("/proc/self/task"))  # noqa: PTH208
    return 1


def frames_of(stack: Sequence[str], *begins: str) -> list[str]:
    """The calls in one of several threads' stacks, outermost first. `stack` has the lines of all stacks.

    The calls are those of the last stack whose first line begins with one of `begins`. Without `begins`, they
    are those of the last stack of a thread that got a signal.
    """
    heads = [position for position, line in enumerate(stack) if line.startswith(begins or _STACK)]
    begin = heads[-1] if heads else len(stack)
    calls = takewhile(str.strip, stack[begin + 1 :])
    frames = [_FRAME.match(line) for line in calls]
    return [f"{frame[1]}, in {frame[2]}" for frame in reversed(frames) if frame]


def _log_line(level: str, text: str) -> str:
    return f"{level} {time.strftime('%m-%d %H:%M:%S')} [process_ends.py:1] {text}"
