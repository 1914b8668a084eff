"""The processes of an engine that may hang: which ones are stopped, their processor time and their stacks."""

import asyncio
import os
import re
import signal
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from typing import Final, NamedTuple

from base.machine.processes import ENDED, descendants, processor_s, stat_fields
from base.wording import list_some
from startup.processes.state import read_fields
from startup.reports.crash.output_record import ANY_STACK, STACK_SIGNAL, OutputRecord, frames_of, labelled

_STOPPED: Final = "T"
_WRITE_S: Final = 1.0
"""Seconds that processes have to write their stacks."""
_RESUME_S: Final = 0.2
"""Seconds between SIGCONT and the signal for the stacks. Without this pause, the signal may reach any thread,
which then reads the stacks of threads that are waking up. This sometimes crashes Python."""
_POLL_S: Final = 0.05
_MOST_SHOWN: Final = 12
_OUTERMOST: Final = " in <module>"
"""The end of the last line of a process that has written all of its stacks."""
_WAITS_FOR_WORK: Final = "dequeue"
"""vLLM's function in which an idle worker waits."""
_PLACE: Final = re.compile(r'  File "(?:[^"]*/)?([^"/]+)", line (\d+), in (\S+)')


class _Process(NamedTuple):
    pid: int
    name: str
    kind: int
    """The index of the beginning of the process's name in the list `kinds`."""
    begin: str
    """The start time. It differs for a later process with the same pid."""

    @property
    def label(self) -> str:
        return f"{self.name} (pid {self.pid})"


class RecordedProcesses:
    """Implements `server.operation.engine_watchdog.EngineProcesses` for processes with an output record."""

    def __init__(self, record: OutputRecord, kinds: Sequence[str]) -> None:
        """
        Args:
            record: the output record to which all of these processes write.
            kinds: beginnings of processes' names. Each beginning is one kind. Processes of the last kind
                that exists run the model.
        """
        self._record = record
        self._kinds = kinds
        self._known: dict[int, _Process | None] = {}
        self._stopped: list[_Process] = []
        """Processes that the last call of `stopped` found. Another API server may have resumed some since."""

    def stopped(self) -> list[str]:
        self._stopped = [process for process, stat in self._alive() if stat[0] == _STOPPED]
        return [process.label for process in self._stopped]

    def computed_s(self, *, is_on_processor: bool) -> float:
        alive = list(self._alive())
        computing = [(process, stat) for process, stat in alive if process.kind == _last_kind(alive)]
        stats = [stat for _, stat in computing] if is_on_processor else []
        for pid in {child for process, _ in computing for child in descendants(process.pid)}:
            with suppress(OSError, IndexError):
                stats.append(stat_fields(pid))
        return sum(processor_s(stat, with_reaped=True) for stat in stats)

    async def read_stacks(self) -> str:
        stacks = await self._take_stacks(resumes=False)
        lines: list[str] = []
        for process, stat in self._alive():
            lines += [f"{process.label}{' is stopped by a signal' if stat[0] == _STOPPED else ''}:"]
            lines += _frames(stacks.get(process, ()))[-_MOST_SHOWN:]
        return "\n".join(lines)

    async def end(self, reason: str) -> None:
        alive = list(self._alive())
        stopped = [process for process, stat in alive if stat[0] == _STOPPED or process in self._stopped]
        stacks = await self._take_stacks(resumes=True)
        working = [process for process, _ in alive if not _waits(stacks.get(process, ()))]
        computing = [process for process in working if process.kind == _last_kind(alive)]
        blamed = stopped or computing or working or [process for process, _ in alive]
        others = [each for each in stacks if each not in blamed]
        for process in (*others, *reversed(blamed)):
            stack = stacks.get(process, ())
            self._record.append(labelled(stack, process.name, process.pid))
        if blamed:
            where = list_some([_describe(process, stacks.get(process, ())) for process in blamed])
            lines = [f"Process {blamed[0].name}:", "Traceback (most recent call last):"]
            lines += [*_frames(stacks.get(blamed[0], ())), f"EngineHangError: {reason}; {where}"]
            self._record.append(labelled(lines, blamed[0].name, blamed[0].pid))
        for process, _ in self._alive():
            with suppress(OSError):
                os.kill(process.pid, signal.SIGKILL)

    async def _take_stacks(self, *, resumes: bool) -> Mapping[_Process, Sequence[str]]:
        """The stacks of all threads, by process. Stopped processes are resumed first, or else left out."""
        stopped = [process for process, stat in self._alive() if stat[0] == _STOPPED]
        if resumes and stopped:
            for process in stopped:
                with suppress(OSError):
                    os.kill(process.pid, signal.SIGCONT)
            await asyncio.sleep(_RESUME_S)
        begun = {process: self._record.state_size(process.pid) for process, _ in self._alive()}
        asked = [process for process, _ in self._alive() if resumes or process not in stopped]
        for process in asked:
            with suppress(OSError):
                if _catches(process.pid):
                    os.kill(process.pid, STACK_SIGNAL)
        stacks: dict[_Process, Sequence[str]] = {}
        for _ in range(int(_WRITE_S / _POLL_S)):
            await asyncio.sleep(_POLL_S)
            stacks = {each: self._record.read_stacks(each.pid, begun.get(each, 0)) for each in asked}
            if all(stack and stack[-1].endswith(_OUTERMOST) for stack in stacks.values()):
                break
        return stacks

    def _alive(self) -> Iterator[tuple[_Process, list[str]]]:
        """Yields the running processes in the order of their kinds, with their fields of /proc/PID/stat."""
        found: list[tuple[_Process, list[str]]] = []
        for pid in self._record.begun_pids():
            with suppress(OSError, IndexError):
                stat = stat_fields(pid)
                process = self._known[pid] if pid in self._known else self._identify(pid, stat)
                if process is not None and stat[0] not in ENDED and process.begin == _begin(stat):
                    found.append((process, stat))
        yield from sorted(found, key=lambda each: (each[0].kind, each[0].name))

    def _identify(self, pid: int, stat: list[str]) -> _Process | None:
        name = self._record.read_state(pid).name
        process = None
        for kind, prefix in enumerate(self._kinds):
            if name.startswith(prefix):
                process = _Process(pid, name, kind, _begin(stat))
                break
        if name:  # otherwise it is about to write it
            self._known[pid] = process
        return process


def _last_kind(alive: Sequence[tuple[_Process, list[str]]]) -> int:
    return max((process.kind for process, _ in alive), default=0)


def _begin(stat: Sequence[str]) -> str:
    return stat[19]


def _catches(pid: int) -> bool:
    """Whether the process handles `STACK_SIGNAL`. If it does not, this signal would end it."""
    caught = read_fields(f"/proc/{pid}/status").get("SigCgt", "0")
    return bool(int(caught, 16) >> (STACK_SIGNAL - 1) & 1)


def _frames(stack: Sequence[str]) -> list[str]:
    """The frames of the main thread's stack. The outermost frame is first."""
    return frames_of(stack, *ANY_STACK)


def _waits(stack: Sequence[str]) -> bool:
    return any(frame.endswith(f", in {_WAITS_FOR_WORK}") for frame in _frames(stack))


def _describe(process: _Process, stack: Sequence[str]) -> str:
    frames = _frames(stack)
    place = _PLACE.match(frames[-1]) if frames else None
    return f"{process.label} in {place[3]}() of {place[1]}:{place[2]}" if place else process.label
