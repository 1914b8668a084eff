"""Finds the first failure in a log of vLLM, of any size, and the known cause that matches the failure."""

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Final

from startup.reports.causes.cause import LLAMA_CPP_NAME, Cause, quote, shorten
from startup.reports.causes.evidence import Evidence, special
from startup.reports.causes.failures import Failure, Raised
from startup.reports.causes.first_steps import first_step_of
from startup.reports.causes.known_cause import KnownCause, Sign
from startup.reports.causes.log_line import LogLine, read_line
from startup.reports.causes.own_faults import OWN_FAULT
from startup.reports.causes.phase import BANNER, KV_CACHE, OLD_BANNER, SERVING, phase_of_functions
from startup.reports.causes.recognition import recognize, with_context
from startup.reports.causes.table import BY_NAME, NOT_IN_LOG, STOPPED

_EARLIER: Final = "an earlier run"
_LONGEST_EXCERPT: Final = 500
"""The number of lines of a log that may be a pasted excerpt. In these lines, text of any form may name the
cause. In later lines, only vLLM's own forms count."""
_INNER: Final = ("worker", "engine core")
_MODEL_INSPECTION: Final = "registry.py"
"""vLLM's module that imports a model's code in another process, and quotes the exceptions of this process."""
_MOST_LINES_OF_AN_END: Final = 5
"""The number of lines after an exception's first line, or a process's end, that may name the cause."""
_MOST_LINES_BETWEEN: Final = 40
"""A telling line is shown with an exception unless more lines than these lie between them."""
_CRASH, _KILL = BY_NAME["native-crash"], BY_NAME["process-killed"]


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
        self._run = Evidence()
        self._before: Cause | None = None
        """The cause that ended the previous run. None if the log shows no failure of that run."""

    def read(self, raw: str) -> None:
        """Takes the next line. A line that ends with a carriage return continues in the next call."""
        self._number += self._is_next_new
        self._num_texts += 1
        self._is_next_new = not raw.endswith("\r")
        for line in read_line(raw):
            self._read(line)

    def cause(self) -> Cause | None:
        """Why the last run has ended. If the last run has only begun, why the previous run has ended."""
        found = _cause_of(self._run)
        if found:
            origin = found.origin or (LLAMA_CPP_NAME if "llama.cpp" in self._run.facts else "")
            given, platform = self._run.settings.given(), self._run.platform
            found = replace(found, origin=origin, version=self._run.version, platform=platform, given=given)
        return found if found or "ready" in self._run.facts else self._before

    def _read(self, line: LogLine) -> None:
        if BANNER in line.text or OLD_BANNER in line.text:
            self._before = self.cause()
            is_beside = "ready" in self._run.facts and self._before is None
            self._run = Evidence(engine=_EARLIER if is_beside else "")
        self._run.read(line, self._number, is_excerpt=self._num_texts <= _LONGEST_EXCERPT)


def _cause_of(run: Evidence) -> Cause | None:
    found = _of_exception(run)
    if found is None and not _served_until_the_end(run):
        found = next((cause for find in _ORDER if (cause := find(run))), None)
    wait = run.wait
    if wait and wait.known and wait.known.is_general and (found or "ready" in run.facts):
        wait = None  # such a line only says what the start has come to
    if wait and (found is None or found.known is STOPPED or (found.is_mention and found.line <= wait.line)):
        return replace(_of_sign(wait, run), is_waiting=True)
    return found


def _of_exception(run: Evidence) -> Cause | None:
    """The exception that ended the server, unless an end that says more came before it."""
    failures = [each for each in run.exceptions.failures() if _counts(each, run)]
    failure = _first(failures)
    if failure is None:
        return None
    cause = _describe(failure, run)
    named = _named_near(run, cause.line) if cause.known is None else None
    if cause.known is NOT_IN_LOG:
        named = next(special(run.of_kind("error")), None)
    if named:
        cause = replace(cause, known=named.known, text=shorten(named.text))
    end = _end(run)
    files = failure.raised[-1].files
    return _with_told(cause, failure.told, run, files) if end is None or _is_before(cause, end) else _of_sign(end, run)


def _end(run: Evidence) -> Sign | None:
    """The line that reports the end of a process: the first with a special cause, or else with another."""
    ends = run.of_kind("end")
    general = (end for end in ends if end.known and end.known.is_general and end.known is not NOT_IN_LOG)
    return next((end for each in (special(ends), general, ends) for end in each), None)


def _of_line(run: Evidence) -> Cause | None:
    """The line that reports an end without an exception, or else a line that names the cause of this end."""
    own, errors = run.own_error, run.of_kind("error")
    sign = _end(run) or next(iter(errors), None) or own
    if sign and sign.known and sign.known.is_general:
        if sign.known is NOT_IN_LOG:
            sign = next(iter(errors), None) or _mention(run) or sign
        elif (named := _named_near(run, 0, sign.line)) and (sign.known, named.known) != (_CRASH, _KILL):
            sign = named
    return _with_told(_of_sign(sign, run), sign.told, run) if sign else None


def _of_trace(run: Evidence) -> Cause | None:
    """An exception that only reports another one, or else a traceback without its exception."""
    found = run.exceptions.reference or run.exceptions.cut
    if found is None:
        return None
    text = f"a traceback without its exception, up to {''.join(found.functions[-1:]) or 'its first line'}"
    text = shorten(found.raised[-1].text) if found.raised else text
    phase = (not found.raised and phase_of_functions(found.functions)) or found.phase
    return _with_told(Cause(found.process or found.role, phase, text, NOT_IN_LOG, found.line), found.told, run)


_ORDER: Final = (
    _of_line,
    lambda run: _mentioned(_mention(run), run),
    _of_trace,
    lambda run: _mentioned(run.complaint, run),
)
"""Other places of the cause if no exception shows it, in the order in which they count."""


def _served_until_the_end(run: Evidence) -> bool:
    cut, own = run.exceptions.cut, run.own_error
    is_engine_cut = cut is not None and cut.phase == SERVING and cut.role in _INNER
    is_told = own is not None and own.known is not None
    has_ended = _end(run) is not None or "engine dead" in run.facts or is_engine_cut or is_told
    return "ready" in run.facts and not has_ended


def _mention(run: Evidence) -> Sign | None:
    signs = run.of_kind("mention")
    return next(special(signs), None) or next(iter(signs), None)


def _mentioned(sign: Sign | None, run: Evidence) -> Cause | None:
    if sign is None:
        return None
    cause = replace(_of_sign(sign, run), phase="", is_mention=True)
    return _with_told(cause, run.told, run) if sign.known else cause


def _named_near(run: Evidence, first: int, last: int = 0) -> Sign | None:
    """A line with a cause that is not general, between line `first` and some lines after line `last`."""
    last = (last or first) + _MOST_LINES_OF_AN_END
    signs = special([*run.of_kind("error"), *run.of_kind("mention")])
    return next((sign for sign in signs if first <= sign.line <= last), None)


def _with_told(cause: Cause, told: Sign | None, run: Evidence, files: Sequence[str] = ()) -> Cause:
    """If the cause is weak, returns the cause that the line `told` shows, or adds that line to the text."""
    if told is None or not cause.is_weak or cause.known is STOPPED:
        return cause
    tags = cause.known.tags if cause.known else frozenset()
    is_beside = told.known is None and not tags & {"unexplained", "told"}
    if is_beside and (told.text in cause.text or abs(told.line - cause.line) > _MOST_LINES_BETWEEN):
        return cause
    text = f"{cause.text} (line {told.line}: {told.text})" if is_beside else told.text
    known = told.known or (None if "unexplained" in tags else cause.known)
    step = first_step_of(known, text, files, cause.phase, run) or cause.first_step
    line = told.line if told.known else cause.line
    return replace(cause, known=known, text=shorten(text), line=line, first_step=step)


def _counts(failure: Failure, run: Evidence) -> bool:
    """Whether an exception can have ended the server. A ready server survives exceptions of its API."""
    if failure.is_of_request:
        return False
    is_last = failure.role in _INNER or failure.is_ending or STOPPED.matches(failure.informative()[0].text)
    return is_last or "ready" not in run.facts


def _first(failures: list[Failure]) -> Failure | None:
    """The first failure of the engine or of a worker, or else the last failure, which ended the server."""
    if inner := [failure for failure in failures if failure.role in _INNER]:
        return next((failure for failure in inner if failure.is_ending), inner[0])
    if models := [failure for failure in failures if failure.place == _MODEL_INSPECTION]:
        return models[-1]
    return failures[-1] if failures else None


def _is_before(cause: Cause, end: Sign) -> bool:
    """Whether `cause` explains more than `end`: it is earlier in the log, or `end` is general.

    A general exception after a crash, such as Ray's, only reports that crash.
    """
    is_report = end.known is _CRASH and cause.known is not None and cause.known.is_general
    is_general = end.known is not None and end.known.is_general and not is_report
    return cause.line <= end.line or (is_general and cause.known is not STOPPED)


def _describe(failure: Failure, run: Evidence) -> Cause:
    process = failure.process or failure.role
    if failure.own_fault is not None:
        text = quote(failure.own_fault, OWN_FAULT)
        return Cause(process, _phase_of(failure, OWN_FAULT), text, OWN_FAULT, failure.line)
    raised, known, is_special = recognize(failure, run)
    hint = next(iter(run.of_kind("hint")), None)
    if hint and not is_special:
        raised, known = Raised(hint.text), hint.known
    if known and known.phase == KV_CACHE and _is_beside(failure.process, run.engine):
        known = BY_NAME["kv-cache-beside-another"]
    phase, text = _phase_of(failure, known), quote(raised, known)
    is_of_import = failure.is_of_library_import
    cause = Cause(process, phase, text, known, failure.line, is_of_library_import=is_of_import, origin=raised.package)
    files, words = raised.files or failure.raised[-1].files, f"{raised.text}\n{raised.place} {raised.source}"
    return with_context(cause, run, files, words, is_inner=failure.role in _INNER)


def _is_beside(process: str, engine: str) -> bool:
    """Whether the process belongs to another engine than `engine`, not to another data parallel rank."""
    names = [label.partition(" pid=")[0] for label in (process, engine)]
    return engine == _EARLIER or (engine not in ("", process) and names[0] == names[1])


def _phase_of(failure: Failure, known: KnownCause | None) -> str:
    return (known and known.phase) or phase_of_functions(failure.functions) or failure.phase


def _of_sign(sign: Sign, run: Evidence) -> Cause:
    phase = (sign.known and sign.known.phase) or sign.phase
    cause = Cause(sign.process, phase, shorten(sign.text), sign.known, sign.line)
    if sign.known is None:
        return replace(cause, first_step=first_step_of(None, sign.text, run.stack[::-1], phase, run))
    return with_context(cause, run, run.stack[::-1], sign.text, is_inner=False)
