"""Finds what ended vLLM first in a log of any size, and what is known of it."""

import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Final

from startup.causes.failures import Failure, FailureReader, is_place_of_requests
from startup.causes.known.processes import STOPPED
from startup.causes.known.table import KNOWN
from startup.causes.known_cause import KnownCause
from startup.causes.log_line import LogLine, read_line
from startup.causes.phase import PHASE_TEXTS, SERVING, phase_of_functions, phase_of_message

INTERESTING: Final = (
    "ERROR",
    "CRITICAL",
    "rror",
    "xception",
    "raceback",
    "nterrupt",
    "ailed",
    "illed",
    "ault",
    "died",
    "signal",
    "SIG",
    "xit",
    "ore dumped",
    "terminat",
    "IsEnabled",
    "EADDRINUSE",
    "ddress already in use",
    "ut of memory",
    "NotFound",
    "imeout",
    "CANCELLED",
    "TIME LIMIT",
    "oom-kill",
    "Bus error",
    "unable to",
    "Illegal",
    "Process ",
)
"""A line without one of these, or without a phase's text, tells nothing unless an exception is being read."""

_MOST_SIGNS: Final = 200
_MOST_PHASES: Final = 1_000
_NEW_RUN: Final = "vLLM API server version"

_QUOTED: Final = re.compile(r"Worker failed with error '(.{1,600})', please check the stack trace", re.DOTALL)
"""The engine core quotes what a worker reported."""
_PYDANTIC: Final = re.compile(r"\d{1,4} validation errors? for \w")
_INNER: Final = ("worker", "engine core")
_MODEL_INSPECTION: Final = "registry.py"
"""It imports the model's code in a process of its own, and quotes the exception there."""
_GOES_ON: Final = ("raised:", "output:")
"""The end of a first line that says less than the next one."""
_OF_SCRIPTS: Final = ("subprocess.CalledProcessError", "CalledProcessError")
"""What scripts around vLLM raise when it has ended."""
_LONGEST_QUOTE: Final = 400
_ENGINE_DEAD: Final = ("EngineDeadError", "EngineCore encountered an issue", "Engine loop is not running")


@dataclass(frozen=True)
class Cause:
    """What ended vLLM."""

    process: str
    """Its label in the log, such as `EngineCore_DP0 pid=123`, or its role; empty if unknown."""
    phase: str
    """What it was doing, such as `while it loaded the model`; empty if unknown."""
    text: str
    """The exception or the line that tells it, as in the log, but shortened."""
    known: KnownCause | None
    line: int
    """Number of that line, from 1."""


@dataclass(frozen=True)
class _Sign:
    """A line outside of exceptions that tells of a cause."""

    line: LogLine
    number: int
    phase: str
    known: KnownCause
    is_error: bool = False
    """Whether it is only the message of an error, which need not have ended anything."""


@dataclass
class _Run:
    """What one start of the server has written."""

    reader: FailureReader = field(default_factory=FailureReader)
    phases: dict[str, str] = field(default_factory=dict)
    """Label of a process -> its latest phase; the empty label stands for the latest of all."""
    signs: list[_Sign] = field(default_factory=list)
    was_ready: bool = False
    is_engine_dead: bool = False


def find_cause(lines: Iterable[str]) -> Cause | None:
    """What ended the last run of vLLM in a log; None if nothing did.

    The time is linear in the log's length, memory does not depend on it. Lines of several processes may
    alternate, with the prefixes of other programs.
    """
    finder = CauseFinder()
    for line in lines:
        finder.read(line)
    return finder.cause()


class CauseFinder:
    """Reads a log line by line."""

    def __init__(self) -> None:
        self._number = 0
        self._is_next_new = True
        """Whether the next text begins a line of the file, and not another state of a progress bar."""
        self._run = _Run()
        self._before: Cause | None = None
        """The cause in the run before this one."""

    def read(self, raw: str) -> None:
        """Takes the next line; one that ends with a carriage return is continued by the next."""
        self._number += self._is_next_new
        self._is_next_new = not raw.endswith("\r")
        if self._run.reader.is_reading or _is_interesting(raw):
            for line in read_line(raw):
                self._read(line)

    def cause(self) -> Cause | None:
        """What ended the last run; if that only began, what ended the one before."""
        found = _cause_of(self._run)
        return found if found or self._run.was_ready else self._before

    def _read(self, line: LogLine) -> None:
        if _NEW_RUN in line.text:
            self._before, self._run = self.cause(), _Run()
        run = self._run
        if phase := phase_of_message(line.text):
            if len(run.phases) < _MOST_PHASES:
                run.phases[line.process] = phase
            run.phases[""] = phase
            run.was_ready |= phase == SERVING
        phase = SERVING if run.was_ready else run.phases.get(line.process) or run.phases.get("", "")
        run.is_engine_dead |= any(part in line.text for part in _ENGINE_DEAD)
        run.reader.read(line, self._number, phase)
        if len(run.signs) < _MOST_SIGNS and line.text[:1] not in (" ", "\t"):
            run.signs += _find_signs(line, self._number, phase)


def _is_interesting(raw: str) -> bool:
    return any(part in raw for part in INTERESTING) or any(part in raw for part in PHASE_TEXTS)


def _find_signs(line: LogLine, number: int, phase: str) -> list[_Sign]:
    """The first end and the first hint in a line; in the message of an error, the first of all causes."""
    signs = []
    if sign := next((known for known in _HINTS if known.matches(line.text)), None):
        signs.append(_Sign(line, number, phase, sign))
    if sign := next((known for known in _ENDS if known.matches(line.text)), None):
        signs.append(_Sign(line, number, phase, sign))
    if not signs and line.level in ("ERROR", "CRITICAL") and not is_place_of_requests(line.place):
        known = next((known for known in KNOWN if known.matches(line.text)), None)
        signs += [_Sign(line, number, phase, known, is_error=True)] if known else []
    return signs


_HINTS: Final = tuple(known for known in KNOWN if known.where == "hint")
_ENDS: Final = tuple(known for known in KNOWN if known.where == "end")


def _cause_of(run: _Run) -> Cause | None:
    failure = _first([each for each in run.reader.failures() if _counts(each, run)])
    end = next((sign for sign in run.signs if sign.known.where == "end"), None)
    if failure is None and end is None and (run.is_engine_dead or not run.was_ready):
        end = next((sign for sign in run.signs if sign.is_error), None)
    if failure is not None:
        cause = _describe(failure, run)
        if end is None or cause.line <= end.number or (end.known.is_general and cause.known is not STOPPED):
            return cause
    if end is None:
        return None
    end = _hint(run) or end if end.known.is_general else end
    return Cause(end.line.process, end.phase, _shorten(end.line.text), end.known, end.number)


def _counts(failure: Failure, run: _Run) -> bool:
    """Whether an exception can have ended the server: one that was ready survives exceptions of its API."""
    if failure.is_of_request:
        return False
    return not run.was_ready or failure.role in _INNER or STOPPED.matches(failure.telling_texts()[0])


def _first(failures: list[Failure]) -> Failure | None:
    """The failure that led to the others: in the engine the first, else the last, which nothing survived."""
    if inner := [failure for failure in failures if failure.role in _INNER]:
        return next((failure for failure in inner if failure.is_ending), inner[0])
    if models := [failure for failure in failures if failure.place == _MODEL_INSPECTION]:
        return models[-1]
    own = [failure for failure in failures if not failure.texts[-1].startswith(_OF_SCRIPTS)]
    return (own or failures)[-1] if failures else None


def _describe(failure: Failure, run: _Run) -> Cause:
    texts = failure.telling_texts()
    special = [(text, known) for text in texts if (known := _known(text, is_general=False))]
    general = [(text, known) for text in texts if (known := _known(text, is_general=True))]
    hint = _hint(run)
    if special:
        text, known = special[0]
    elif hint:
        text, known = hint.line.text, hint.known
    else:
        text, known = general[0] if general else (texts[0], None)
    phase = phase_of_functions(failure.functions) or failure.phase
    return Cause(failure.process or failure.role, phase, _quote(text, known, failure), known, failure.line)


def _known(text: str, *, is_general: bool) -> KnownCause | None:
    """What is known of an exception; a line that ends a process can only be its first."""
    flat, first = text.replace("\n", " "), text.partition("\n")[0]
    for known in KNOWN:
        if known.is_general == is_general and known.matches(first if known.where == "end" else flat):
            return known
    return None


def _hint(run: _Run) -> _Sign | None:
    return next((sign for sign in run.signs if sign.known.where == "hint"), None)


def _quote(text: str, known: KnownCause | None, failure: Failure) -> str:
    """The line of an exception that says most."""
    if quoted := _QUOTED.search(text):
        return _shorten(quoted[1])
    lines = text.splitlines()
    if len(lines) > 1 and (lines[0].endswith(_GOES_ON) or _PYDANTIC.search(lines[0])):
        del lines[0]
    line = next((line for line in lines if known and known.matches(line)), lines[0])
    if ": " not in line and (functions := [name for name in failure.functions if name]):
        line = f"{line.rstrip(':')} in {functions[-1]}()"
    return _shorten(line.removeprefix("Value error, ").removeprefix("Assertion failed, "))


def _shorten(text: str) -> str:
    text = " ".join(text.partition(" [type=")[0].split())
    return text if len(text) <= _LONGEST_QUOTE else f"{text[:_LONGEST_QUOTE]} …"
