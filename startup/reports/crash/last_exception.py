"""Finds the last exception of a log. This is what an installation without the addition `explain` reports.

It knows no causes, so it only decides what a start must know of a failure: whether a signal has stopped the
server, and whether plain vLLM could have started.
"""

import re
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final, Self

from startup.errors import UNKNOWN_CAUSE, code_line, code_of
from startup.reports.crash.explanation import shown
from startup.reports.crash.phases import phase_of_functions

_FAILURE: Final = re.compile(
    r"(?:^\s{0,8}|[])] )((?:\w{1,80}\.){0,8}\w{0,80}(?:Error|Exception|Exit|Interrupt|FatalSignal)(?:: .*)?$)"
    r"|ERROR \S{1,40} \S{1,40} \[process_ends\.py:1\] (.*)"
)
"""Matches an exception after any labels, or a line of `ProcessEnds` about a process that has failed."""
_LABEL: Final = re.compile(r"\(([^()]{1,80} pid=\d{1,12})\) ")
_PID: Final = re.compile(r" pid=(\d{1,12})")
_FRAME: Final = re.compile(r'File "([^"<][^"]{0,400})", line \d{1,8}, in (\S{1,120})')
_STOPS: Final = ("KeyboardInterrupt", "SystemExit: 15", "received signal=SIG", "Received SIGTERM")
"""Texts of lines about a signal to the server."""
_FORKED: Final = ("in forked subprocess", " error: initialization error", "CUDA driver initialization failed")
_OWN_CODE: Final = f"{Path(__file__).parents[2]}/"
_INTENDED: Final = ("base.", "envs.", "server.", "startup.", "vllm_cli.", "RuntimeError: --compile-cache require")
"""Beginnings of exceptions with which this program ends a start on purpose."""
_LONGEST: Final = 1_000
_MOST_FRAMES: Final = 200


@dataclass(frozen=True)
class LastException:
    """A `Cause` about which only this is known."""

    process: str
    """The process's label in the log, or its role. Empty if unknown."""
    phase: str
    text: str
    line: int
    """The number of the text's line in the log, from 1. 0 if it is unknown."""
    is_stop: bool = False
    is_own_fault: bool = False
    is_forked_driver: bool = False
    is_of_library_import: bool = False
    name: str | None = None
    title: str = ""
    is_explained: bool = False
    is_guess: bool = False
    is_waiting: bool = False

    def completed(self, phase: str, *, is_embedded: bool) -> Self:
        """See `Cause`."""
        return replace(self, phase=self.phase or phase)

    def describe_error(self, error: str) -> str:
        """See `Cause`."""
        return ""

    def lines(self) -> list[str]:
        """See `Cause`. Says what this installation lacks."""
        process = _PID.sub(r" (pid \1)", shown(self.process)) or "The server"
        happened = f"{process} {'was stopped' if self.is_stop else 'failed'} {self.phase}".rstrip()
        where = f" around it (line {self.line})" if self.line else ""
        advice = f"Read the log{where}: this installation has no explain, which knows causes and remedies."
        return [f"{happened}.", f"Cause: {shown(self.text)}", f"Do: {advice}", code_line(UNKNOWN_CAUSE)]

    def to_dict(self) -> dict[str, Any]:
        """See `Cause`."""
        unknown = dict.fromkeys(("cause", "title", "certainty", "place", "advice"))
        return {
            "process": shown(self.process) or None,
            "phase": self.phase.removeprefix("while it ") or None,
            "code": code_of(UNKNOWN_CAUSE),
            "text": shown(self.text),
            "line": self.line,
            **unknown,
        }


def find_cause(lines: Iterable[str]) -> LastException | None:
    """The last exception of a log, or the signal that stopped the server if nothing had failed before."""
    found, number = None, 1
    is_own = is_forked = is_import = False
    frames: deque[tuple[str, str]] = deque(maxlen=_MOST_FRAMES)
    for line in lines:
        if frame := _FRAME.search(line):
            frames.append((frame[1], frame[2]))
        elif found is None and any(text in line for text in _STOPS):
            return LastException(_process_of(line), "", line[:_LONGEST].strip(), number, is_stop=True)
        elif failure := _FAILURE.search(line[: 2 * _LONGEST]):
            text, (file, function) = failure[1] or failure[2], frames[-1] if frames else ("", "")
            phase = phase_of_functions(name for _, name in frames)
            found = LastException(_process_of(line), phase, text[:_LONGEST], number)
            is_own |= file.startswith(_OWN_CODE) and not text.startswith(_INTENDED)
            is_import |= function == "<module>" and "-packages/" in file
            is_forked |= any(part in text for part in _FORKED)
            frames.clear()
        number += not line.endswith("\r")
    if found is None:
        return None
    return replace(found, is_own_fault=is_own, is_forked_driver=is_forked, is_of_library_import=is_import)


def describe_message(process: str, message: str, *, has_advice: bool) -> LastException:
    """The message itself, because no known cause is searched for."""
    return LastException(process, "", message, 0)


def _process_of(line: str) -> str:
    label = _LABEL.match(line)
    return label[1] if label else ""
