"""Finds the first failure in a log of vLLM, of any size, and the known cause that matches the failure."""

from collections.abc import Iterable
from itertools import chain
from typing import Final

from startup.reports.crash.phases import phase_of_functions
from vllm_cli.explain.cause import LLAMA_CPP_NAME, Cause
from vllm_cli.explain.evidence import Evidence, special
from vllm_cli.explain.failures import Failure
from vllm_cli.explain.log_line import LineReader, LogLine
from vllm_cli.explain.phase import BANNER, OLD_BANNER
from vllm_cli.explain.recognition import (
    EARLIER,
    INNER,
    OF_WORKER,
    describe,
    describe_line,
    quote,
    shorten,
)
from vllm_cli.explain.table import BY_NAME, NOT_IN_LOG, STOPPED

_LONGEST_EXCERPT: Final = 500
"""The number of lines of a log that may be a pasted excerpt. In these lines, text of any form may name the
cause. In later lines, only vLLM's own forms count."""
_MODEL_INSPECTION: Final = "registry.py"
"""vLLM's module that imports a model's code in another process, and quotes the exceptions of this process."""
_MOST_LINES_BEFORE: Final = 5
"""The most lines between the message of an exception and its traceback, if it was logged first."""
_LEAST_SHOWN: Final = 60
"""If this many characters of a message are shown, the message is."""
_CRASH: Final = BY_NAME["native-crash"]


def find_cause(lines: Iterable[str]) -> Cause | None:
    """The cause that ended the last run of vLLM in a log. None if the log shows no failure.

    Takes time linear in the log's length, and constant memory. Lines of several processes may alternate, and
    may have the prefixes of other programs.
    """
    finder = CauseFinder()
    for line in lines:
        finder.read(line)
    return finder.cause()


class CauseFinder:
    """Reads a log line by line. At the end, returns the cause."""

    def __init__(self) -> None:
        self._number = 0
        self._num_texts = 0
        """The number of texts that were read. Each state of a progress bar is a text."""
        self._is_next_new = True
        """Whether the next text begins a line of the file. If not, it continues a progress bar."""
        self._lines = LineReader()
        self._run = Evidence()
        self._before: Cause | None = None
        """The cause that ended the previous run. None if the log shows no failure of that run."""

    def read(self, raw: str) -> None:
        """Takes the next line. A line that ends with a carriage return continues in the next call."""
        self._number += self._is_next_new
        self._num_texts += 1
        self._is_next_new = not raw.endswith("\r")
        for line in self._lines.read(raw, self._number):
            self._read(line)

    def cause(self) -> Cause | None:
        """Why the last run has ended. If the last run has only begun, why the previous run has ended."""
        found = _cause_of(self._run)
        if found:
            origin = found.origin or (LLAMA_CPP_NAME if "llama.cpp" in self._run.facts else "")
            found = found._replace(origin=origin, version=self._run.version, platform=self._run.platform)
        if found is not None and not found.is_unfinished:
            return found
        return found if self._run.has_started else self._before or found

    @property
    def has_started(self) -> bool:
        """Whether the last run served, or has its engine in a program without a server."""
        return self._run.has_started

    @property
    def has_served(self) -> bool:
        """Whether a line shows that the last run was ready or answered requests."""
        return self._run.has_served

    @property
    def is_foreign(self) -> bool:
        """Whether another program than a server of vLLM or the embedded engine wrote the log."""
        return self._run.is_foreign

    def _read(self, line: LogLine) -> None:
        if BANNER in line.text or OLD_BANNER in line.text:
            before = self.cause()
            self._before = None if before and before.is_unfinished else before
            is_beside = "ready" in self._run.facts and self._before is None
            self._run = Evidence(engine=EARLIER if is_beside else "")
        self._run.read(line, self._number, is_excerpt=self._num_texts <= _LONGEST_EXCERPT)


def _cause_of(run: Evidence) -> Cause | None:
    # An exception that can have ended the server says more than any line about its end. Without one, lines of
    # a server that served until its end are of requests or of its shutdown, but for errors of the GPU.
    found = _of_exception(run)
    if found is None:
        found = _of_gpu(run) if _served_until_the_end(run) else _of_other_lines(run)
    last = run.wait or (None if run.has_started else run.last)
    if last is None:
        return found
    # A start that waits, or whose log ends early, has not failed. A line that names a cause without reporting
    # an end counts only if it came later.
    if found is not None and (not found.is_reference or found.line > last.line):
        return found
    return describe_line(last)._replace(is_waiting=True)


def _of_exception(run: Evidence) -> Cause | None:
    """The exception that ended the server, unless an end that says more came before it."""
    failures = [each for each in run.exceptions.failures() if _counts(each, run)]
    failure = _first(failures)
    if failure is None:
        return None
    cause, end = describe(failure, run), _end(run)
    named = next(special(run.of_kind("error")), None)
    if named and cause.known is NOT_IN_LOG:
        cause = cause._replace(known=named.known, text=shorten(named.text))
    if end is not None and not _is_before(cause, end):
        cause = describe_line(end)
    first = failures[0].first
    message = shorten(first.partition(": ")[2].removeprefix(f"{OF_WORKER} '"))[:_LEAST_SHOWN]
    is_shown = message in cause.text or cause.text in first
    return cause if is_shown else cause._replace(first_error=f"line {failures[0].line}: {shorten(first)}")


def _end(run: Evidence) -> Cause | None:
    """The line that reports the end of a process: the first with a special cause, or else with another."""
    return next(chain(special(run.of_kind("end")), run.of_kind("end")), None)


def _of_line(run: Evidence) -> Cause | None:
    """The line that reports an end without an exception, or else a line that names the cause of this end."""
    match = _end(run) or next(iter(run.of_kind("error")), None) or run.own_error
    if match is None:
        return None
    if match.is_general:
        hint = next(iter(run.of_kind("hint")), None)
        match = hint or (match.known is NOT_IN_LOG and _reference(run)) or match
    return describe_line(match)


def _of_trace(run: Evidence) -> Cause | None:
    """An exception that only reports another one, or else a traceback without its exception."""
    found = run.exceptions.report or run.exceptions.cut
    if found is None:
        return None
    before = run.complaint
    if not found.raised and before is not None and 1 <= found.line - before.line <= _MOST_LINES_BEFORE:
        return _referenced(before, run)  # old versions log the message of an exception before its traceback
    cut = f"a traceback without its exception, up to {''.join(found.functions[-1:]) or 'its first line'}"
    text = quote(found.raised[-1], None) if found.raised else cut
    phase = phase_of_functions(found.functions) or found.phase
    return Cause(found.process or found.role, phase, text, NOT_IN_LOG, found.line)


_ORDER: Final = (
    _of_line,
    lambda run: _referenced(_reference(run), run),
    _of_trace,
    lambda run: _referenced(run.complaint, run),
)
"""Other places of the cause if no exception shows it. Reports of an end count most, then lines with a known
cause, then tracebacks without a cause of their own. Lines that only look like an error count least."""


def _of_other_lines(run: Evidence) -> Cause | None:
    for find in _ORDER:
        if cause := find(run):
            return cause
    return None


def _served_until_the_end(run: Evidence) -> bool:
    if not run.has_served or _end(run) or "engine dead" in run.facts:
        return False
    cut, own = run.exceptions.cut, run.own_error
    is_reported = own is not None and own.known is not None
    is_cut = cut is not None and cut.role in INNER
    return not is_reported and not is_cut


def _of_gpu(run: Evidence) -> Cause | None:
    """An error of the GPU that a line reports. Even a server that then shuts down as usual has failed."""
    errors = special(run.of_kind("error"))
    of_gpu = (match for match in errors if match.known and match.known.tags & {"memory", "kernel"})
    return next(map(describe_line, of_gpu), None)


def _reference(run: Evidence) -> Cause | None:
    return next(chain(special(run.of_kind("reference")), run.of_kind("reference")), None)


def _referenced(match: Cause | None, run: Evidence) -> Cause | None:
    if match is None or "engine up" in run.facts or not run.is_excerpt:
        return None
    return describe_line(match)._replace(phase="", is_reference=True)


def _counts(failure: Failure, run: Evidence) -> bool:
    """Whether an exception can have ended the server. A ready server survives exceptions of its API."""
    if failure.is_of_request:
        return False
    if not run.has_served or failure.role in INNER or failure.is_ending:
        return True
    return STOPPED.matches(failure.informative()[0].text)


def _first(failures: list[Failure]) -> Failure | None:
    """The first failure of the engine or of a worker, or else the last failure, which ended the server."""
    if inner := [failure for failure in failures if failure.role in INNER]:
        first = next((failure for failure in inner if failure.is_ending), inner[0])
        workers = (failure for failure in inner if failure.role == "worker")
        return next(workers, first) if first.is_of_executor else first
    if models := [failure for failure in failures if failure.place == _MODEL_INSPECTION]:
        return models[-1]
    return failures[-1] if failures else None


def _is_before(cause: Cause, end: Cause) -> bool:
    """Whether `cause` explains more than `end`: it is earlier in the log, or `end` is general.

    A general exception after a crash, such as Ray's, only reports that crash.
    """
    is_report = end.known is _CRASH and cause.known is not None and cause.known.is_general
    return cause.line <= end.line or (end.is_general and not is_report)
