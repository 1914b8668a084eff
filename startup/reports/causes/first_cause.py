"""Finds the first failure in a log of vLLM, of any size, and the known cause that matches the failure."""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Final

from startup.errors import CODE_LINE
from startup.reports.causes.failures import HARMLESS_LEVELS, Failure, FailureReader, Raised, is_place_of_requests
from startup.reports.causes.known.devices import DEVICES, KV_CACHE_BESIDE, MEMORY
from startup.reports.causes.known.failed_parts import FAILED_PARTS
from startup.reports.causes.known.files import FILES
from startup.reports.causes.known.installation import ERROR_IN_CODE, INSTALLATION, LOADED_FROM_DISK, SETTING_REFUSED
from startup.reports.causes.known.llama_cpp import LLAMA_CPP
from startup.reports.causes.known.model import MODEL
from startup.reports.causes.known.own import OWN
from startup.reports.causes.known.processes import NOT_IN_LOG, PROCESSES, STOPPED
from startup.reports.causes.known_cause import KnownCause
from startup.reports.causes.log_line import LogLine, read_line
from startup.reports.causes.log_settings import LogSettings, part_called, part_shown, shown_setting
from startup.reports.causes.own_faults import OWN_FAULT
from startup.reports.causes.phase import (
    BANNER,
    COMPUTING,
    FATAL_ERROR,
    KV_CACHE,
    KV_CACHE_SIZE,
    OLD_BANNER,
    SERVING,
    phase_of_functions,
    phase_of_message,
)

KNOWN: Final = (OWN_FAULT, *MEMORY, *DEVICES, *MODEL, *FILES, *INSTALLATION, *LLAMA_CPP, *FAILED_PARTS, *PROCESSES)
"""All causes with texts, in the order of comparison. More general causes come later."""
BY_CODE: Final = {known.code: known for known in (*OWN, *KNOWN)}
"""Code -> known cause."""

LLAMA_CPP_NAME: Final = "llama.cpp"
_OF_LLAMA_CPP: Final = ("llama_", "llama-server", "srv  ", "slot ", "load_tensors:", "common_")
"""Beginnings of llama.cpp's own lines. Other lines of llama.cpp name its library ggml."""
_EARLIER: Final = "an earlier run"

_OF_WORKER: Final = "Worker failed with error"
"""The beginning of the engine core's message that quotes the error of a worker after its start."""
_QUOTED: Final = re.compile(rf"{_OF_WORKER} '(.{{1,600}})', please check the stack trace", re.DOTALL)
_PYDANTIC: Final = re.compile(r"\d{1,4} validation errors? for \w")
_TYPE: Final = " [type="
"""The text after the message in an error of pydantic."""
_OF_PYDANTIC: Final = "Value error, "
_OUTPUT: Final = "output:"
_OF_COMPILER: Final = re.compile(r"\b(?:error|fatal|not found)\b")
_POINTER: Final = "Search for `cuda"
"""The beginning of torch's line that refers to CUDA's documentation."""
_OF_CPP: Final = "  what():"
_GOES_ON: Final = ("raised:", _OUTPUT, "TorchScript interpreter.")
"""Endings of an exception's first line, if the next line is more informative."""
_INNER: Final = ("worker", "engine core")
_MODEL_INSPECTION: Final = "registry.py"
"""vLLM's module that imports a model's code in another process, and quotes the exceptions of this process."""
_OF_SCRIPTS: Final = ("subprocess.CalledProcessError", "CalledProcessError")
"""Exceptions that scripts around vLLM raise when vLLM has exited."""
_LONGEST_QUOTE: Final = 400
_OF_EXCEPTIONS: Final = tuple(known for known in KNOWN if known is not ERROR_IN_CODE)

_MOST_PHASES: Final = 1_000
_LONGEST_EXCERPT: Final = 500
"""The number of lines of a log that may be a pasted excerpt. In these lines, text of any form may name the
cause. In later lines, only vLLM's own forms count."""
_CODE: Final = re.compile(
    r"(?:class|def|raise|return|from|except|elif|if|for|with|assert|async) .*[:(,]$|@|frame #\d|Exception raised from "
)
"""Matches source code in tracebacks without indentation, and C++ frames, which report no event."""
_COMPLAINT: Final = re.compile(r".{0,80}?(?:\b[Ee]rror|\bERROR|\b[Ff]atal|\b[Ff]ailed to|\b[Cc]ould ?n[o']t)\b")
"""Matches an error message of any program."""
_RECOMMENDS: Final = re.compile(
    r"(?i:\b(?:please|try|consider) (?:to )?(?:set|us[ei]|specif|disabl|enabl|pass|increas|reduc|decreas|lower|rais)"
    r"|\b(?:use|set|setting|pass|add|via|with) `?(?:--[a-z]|VLLM_)|\bbe one of\b)"
)
_REFUSES: Final = re.compile(
    r"(?!Assertion|Attribute|Index|Key|Name|Type|RuntimeError: view ).{0,2000}?"
    r"(?:not (?:yet )?supported|unsupported|not support |only supports?\b|incompatible|not compatible"
    r"|mutually exclusive|cannot be (?:used|combined|set|enabled)|\brequires? "
    r"|\bmust be (?:set|used|one of|greater|less|at least|a |an ))",
    re.DOTALL | re.IGNORECASE,
)
_OF_VALUES: Final = ("RuntimeError", "ValueError")
"""Types of the exceptions that operators of torch and NumPy raise for wrong tensors."""
_QUOTED_ERROR: Final = re.compile(r"\b[A-Z]\w{1,60}(?:Error|Exception): .{1,400}")
_MOST_LINES_OF_AN_END: Final = 5
"""The number of lines after an exception's first line, or a process's end, that may name the cause."""
_ENGINE_DEAD: Final = ("EngineDeadError", "EngineCore encountered an issue", "Engine loop is not running")
_NO_CLASS: Final = ("alling back to Transformers", "Resolved architecture: Transformers")
"""Beginnings of vLLM's messages about a model for which it has no class."""
_VERSION: Final = re.compile(r"(?:server version v?|LLM engine \(v|█  version )(\d[\w.]{1,20})")
_PLATFORM: Final = "detected platform "
_CRASH_FRAME: Final = re.compile(r' {0,4}File "([^"]{1,400})", line \d{1,8} in ')
_MOST_FRAMES: Final = 60
_OWN_ERROR: Final = "Error: "
"""The beginning of the last line of `vllm-cli` after a failed start, and of a digest."""
_OWN_CAUSE: Final = "Cause: "

_NOT_DIVISIBLE: Final = "not-divisible"
_NO_CLASS_CAUSE: Final = "model-class-missing"
_OF_MANY_CAUSES: Final = ("weights-do-not-match", "illegal-memory-access", "graph-capture-failed")
"""Special causes that a part of vLLM may have, which the traceback then names."""
_OF_SETTINGS: Final = (
    "attention-backend-missing",
    "backend-unsupported",
    "deep-gemm-failed",
    "flashinfer-failed",
    "gpu-too-old",
    "kernel-too-large",
    "moe-backend-missing",
    "quantization-unsupported",
)
"""Special causes whose advice is about settings, some of which the log may show."""
_BY_NAME: Final = {known.name: known for known in KNOWN}

_CRASH, _KILL = _BY_NAME["native-crash"], _BY_NAME["process-killed"]

_HINTS: Final = tuple(known for known in KNOWN if known.where == "hint")
_ENDS: Final = tuple(known for known in KNOWN if known.where == "end")
_WAITS: Final = tuple(known for known in KNOWN if known.where == "wait")
_SPECIAL: Final = tuple(known for known in KNOWN if not known.is_general)
_NAMED: Final = tuple(known for known in KNOWN if known is not NOT_IN_LOG)


@dataclass(frozen=True)
class Cause:
    """Why vLLM has ended, or a line outside of exceptions that may show the cause."""

    process: str
    """The process's label in the log, such as `EngineCore_DP0 pid=123`, or its role. Empty if unknown."""
    phase: str
    """The activity of the process, such as `while it loaded the model`. Empty if it is unknown."""
    text: str
    """The exception or the line that reports the end. `find_cause` returns it shortened."""
    known: KnownCause | None
    line: int
    """The number of the text's line in the log, from 1. 0 if the text itself contains advice."""
    is_mention: bool = False
    """Whether the cause is only named by this line, and no line shows that a process ended because of it."""
    is_waiting: bool = False
    """Whether this line reports that the process waits, and nothing in the log has ended it."""
    is_of_library_import: bool = False
    """Whether an installed module raised an exception while it was imported."""
    origin: str = ""
    """The package whose code raised the exception, or `LLAMA_CPP_NAME`. Empty if unknown."""
    settings: tuple[str, ...] = ()
    """Flags and variables that this log sets, and without which the failure may not occur."""
    first_step: str = ""
    """Advice for this log alone. The cause's advice follows."""
    version: str = ""
    """The version of vLLM. Empty if it is unknown, like `platform`, such as `rocm`."""
    platform: str = ""

    @classmethod
    def of_line(cls, line: LogLine, number: int, phase: str, known: KnownCause | None) -> "Cause":
        return cls(line.process, phase, line.text, known, number)


@dataclass
class Run:
    """The output of one start of the server: its exceptions, and the first useful line of each kind."""

    exceptions: FailureReader = field(default_factory=FailureReader)
    end: Cause | None = None
    """A line that reports the end of a process without an exception."""
    hint: Cause | None = None
    """A line that explains an exception."""
    error: Cause | None = None
    """An error message with a known cause, even if the error ended nothing."""
    mention: Cause | None = None
    """A line of any form that names a known cause. A pasted excerpt may have no better line."""
    complaint: Cause | None = None
    """A line that looks like an error message."""
    own_error: Cause | None = None
    """The last error message of `vllm-cli` itself."""
    wait: Cause | None = None
    """A line that reports that a process still waits. None once a process has gone on."""
    settings: LogSettings = field(default_factory=LogSettings)
    version: str = ""
    """The version of vLLM, such as `0.11.0`. Empty if it is unknown, like `platform`, such as `rocm`."""
    platform: str = ""
    has_no_class: bool = False
    """Whether vLLM has no class of its own for the model, so that it uses the one of transformers."""
    stack: list[str] = field(default_factory=list)
    """Files of the stack that Python writes when a process crashes, innermost first."""
    was_ready: bool = False
    is_engine_dead: bool = False
    """Whether the API server has reported that its engine has ended."""
    is_loaded_from_disk: bool = False
    """Whether vLLM has loaded a model that was compiled before."""
    engine: str = ""
    """The label of the first process whose KV cache had room. `_EARLIER`: an earlier run's still serves."""
    is_of_llama_cpp: bool = False
    _phases: dict[str, str] = field(default_factory=dict)
    """Label of a process -> its latest phase. The empty label has the latest phase of the log."""

    def read(self, line: LogLine, number: int, *, is_excerpt: bool) -> None:
        """Takes the line with this number. `is_excerpt`: whether the log may be only an excerpt."""
        if not line.text.strip():
            self.exceptions.read(line, number, "")
            return
        phase = self._follow_phase(line)
        self.is_engine_dead |= any(part in line.text for part in _ENGINE_DEAD)
        self.is_loaded_from_disk |= LOADED_FROM_DISK in line.text
        self.is_of_llama_cpp |= line.text.startswith(_OF_LLAMA_CPP) or "ggml" in line.text[:200]
        self.has_no_class |= any(part in line.text for part in _NO_CLASS)
        self.settings.read(line.text)
        if found := _VERSION.search(line.text):
            self.version = found[1]
        if _PLATFORM in line.text:
            self.platform = line.text.partition(_PLATFORM)[2].split()[0].rstrip(".")
        if len(self.stack) < _MOST_FRAMES and (found := _CRASH_FRAME.match(line.text)):
            self.stack.append(found[1])
        self.exceptions.read(line, number, phase)
        if _CODE.match(line.text):
            return
        if known := _match(line, _WAITS):
            self.wait = Cause.of_line(line, number, phase, known)
        elif line.level == "INFO":
            self.wait = None
        if line.text[:1] not in (" ", "\t") or _OF_PYDANTIC in line.text or _OF_CPP in line.text:
            self._find_signs(line, number, phase, is_excerpt=is_excerpt)

    def _follow_phase(self, line: LogLine) -> str:
        if begun := phase_of_message(line.text):
            if line.process in self._phases or len(self._phases) < _MOST_PHASES:
                self._phases[line.process] = begun
            self._phases[""] = begun
            if KV_CACHE_SIZE in line.text:
                self.engine = self.engine or line.process
            self.was_ready |= begun == SERVING and FATAL_ERROR not in line.text
        return SERVING if self.was_ready else self._phases.get(line.process) or self._phases.get("", "")

    def _find_signs(self, line: LogLine, number: int, phase: str, *, is_excerpt: bool) -> None:
        if self.hint is None and (known := _match(line, _HINTS)):
            self.hint = Cause.of_line(line, number, phase, known)
        if self._may_end_better() and (known := _match(line, _ENDS)):
            is_later_kill = self.end is not None and self.end.known is _CRASH and known is _KILL
            if self.end is None or self.end.known is NOT_IN_LOG or not (known.is_general or is_later_kill):
                self.end = Cause.of_line(line, number, phase, known)
        elif self.error is None and line.level in ("ERROR", "CRITICAL") and not is_place_of_requests(line.place):
            known = _match(line, KNOWN)
            self.error = Cause.of_line(line, number, phase, known) if known else None
        named = self.mention.known if self.mention else None
        if (
            (named is None or named.is_general)
            and is_excerpt
            and line.level not in HARMLESS_LEVELS
            and not is_place_of_requests(line.place)
        ):
            known = _match(line, _SPECIAL) or (None if named else _match(line, _NAMED))
            self.mention = Cause.of_line(line, number, phase, known) if known else self.mention
            self._find_complaint(line, number, phase)
        if not line.level and line.text.startswith(_OWN_ERROR):
            known = _match(line, KNOWN)
            if self.own_error is None or not (known and known.is_general):
                self.own_error = Cause.of_line(line, number, phase, known)
        elif self.own_error and line.text.startswith(_OWN_CAUSE) and (known := _match(line, KNOWN)):
            text = line.text.removeprefix(_OWN_CAUSE).removeprefix(f"{known.title}: ")
            self.own_error = Cause.of_line(line._replace(text=text), number, phase, known)
        elif self.own_error and (coded := BY_CODE.get(line.text.removeprefix(CODE_LINE))) and not coded.is_general:
            self.own_error = replace(self.own_error, known=coded)

    def _find_complaint(self, line: LogLine, number: int, phase: str) -> None:
        """Keeps the first error message, or a later message if it quotes an exception."""
        if self.complaint is None or not _QUOTED_ERROR.search(self.complaint.text):
            found = _QUOTED_ERROR.search(line.text)
            if found or (self.complaint is None and (line.level or _COMPLAINT.match(line.text))):
                is_of_code = found is not None and ERROR_IN_CODE.matches(found[0])
                self.complaint = Cause.of_line(line, number, phase, ERROR_IN_CODE if is_of_code else None)

    def _may_end_better(self) -> bool:
        """Whether a later line may explain the end better, because `end` is missing, unknown or general."""
        return self.end is None or self.end.known is None or self.end.known.is_general


def _match(line: LogLine, causes: tuple[KnownCause, ...]) -> KnownCause | None:
    return next((known for known in causes if known.matches(line.text)), None)


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
        self._run = Run()
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
            origin = found.origin or (LLAMA_CPP_NAME if self._run.is_of_llama_cpp else "")
            found = replace(found, origin=origin, version=self._run.version, platform=self._run.platform)
        return found if found or self._run.was_ready else self._before

    def _read(self, line: LogLine) -> None:
        if BANNER in line.text or OLD_BANNER in line.text:
            self._before = self.cause()
            is_beside = self._run.was_ready and self._before is None
            self._run = Run(engine=_EARLIER if is_beside else "")
        self._run.read(line, self._number, is_excerpt=self._num_texts <= _LONGEST_EXCERPT)


def _cause_of(run: Run) -> Cause | None:
    found = _ended_by(run)
    if run.wait and (found is None or found.known is STOPPED or found.is_mention):
        return replace(_describe_sign(run.wait, run), is_waiting=True)
    return found


def _ended_by(run: Run) -> Cause | None:
    failures = [each for each in run.exceptions.failures() if _counts(each, run)]
    failure = _first(failures)
    if failure is not None:
        cause = _describe(failure, run)
        if cause.known is None and (quoting := _quoting_another(failures, failure)):
            cause = _describe(quoting, run)
        sign = _named_line(run, cause.line) if cause.known is None else None
        if cause.known is NOT_IN_LOG and run.error and run.error.known in _SPECIAL:
            sign = run.error
        if sign:
            cause = replace(cause, known=sign.known, text=_shorten(sign.text))
        return cause if run.end is None or _is_before(cause, run.end) else _describe_sign(run.end, run)
    cut = run.exceptions.cut
    is_engine_cut = cut is not None and cut.phase == SERVING and cut.role in _INNER
    is_told = run.own_error is not None and run.own_error.known is not None
    if run.end is None and run.was_ready and not run.is_engine_dead and not is_engine_cut and not is_told:
        return None
    if sign := _best_sign(run):
        return _describe_sign(sign, run)
    if run.mention:
        return _describe_mention(run.mention)
    if (reference := run.exceptions.reference) and (run.is_engine_dead or not reference.is_of_request):
        text = _shorten(reference.raised[-1].text)
        return Cause(reference.process or reference.role, reference.phase, text, NOT_IN_LOG, reference.line)
    if cut:
        phase = phase_of_functions(cut.functions) or cut.phase
        text = f"a traceback without its exception, up to {''.join(cut.functions[-1:]) or 'its first line'}"
        return Cause(cut.process or cut.role, phase, text, NOT_IN_LOG, cut.line)
    return _describe_mention(run.complaint) if run.complaint else None


def _best_sign(run: Run) -> Cause | None:
    """The line that reports an end without an exception, or else a line that names the cause of this end."""
    sign = run.end or run.error or run.own_error
    if sign is None or sign.known is None or not sign.known.is_general:
        return sign
    if run.own_error and run.own_error.known and not run.own_error.known.is_general:
        return run.own_error
    if sign.known is NOT_IN_LOG:
        return run.error or run.mention or sign
    named = _named_line(run, 0, sign.line)
    return sign if named is None or (sign.known is _CRASH and named.known is _KILL) else named


def _named_line(run: Run, first: int, last: int = 0) -> Cause | None:
    """A line with a cause that is not general, between line `first` and some lines after line `last`."""
    last = (last or first) + _MOST_LINES_OF_AN_END
    named = (each for each in (run.error, run.mention) if each and each.known in _SPECIAL)
    return next((each for each in named if first <= each.line <= last), None)


def _counts(failure: Failure, run: Run) -> bool:
    """Whether an exception can have ended the server. A ready server survives exceptions of its API."""
    if failure.is_of_request:
        return False
    is_last = failure.role in _INNER or failure.is_ending or STOPPED.matches(failure.informative()[0].text)
    return is_last or not run.was_ready


def _first(failures: list[Failure]) -> Failure | None:
    """The first failure of the engine or of a worker, or else the last failure, which ended the server."""
    if inner := [failure for failure in failures if failure.role in _INNER]:
        return next((failure for failure in inner if failure.is_ending), inner[0])
    if models := [failure for failure in failures if failure.place == _MODEL_INSPECTION]:
        return models[-1]
    own = [failure for failure in failures if not failure.raised[-1].text.startswith(_OF_SCRIPTS)]
    return (own or failures)[-1] if failures else None


def _quoting_another(failures: list[Failure], failure: Failure) -> Failure | None:
    """The engine core's exception that quotes a worker's exception, if it is not `failure`'s."""
    for each in failures:
        found = _QUOTED.search(each.raised[-1].text)
        if found and found[1].partition("\n")[0] not in failure.raised[-1].text:
            return each
    return None


def _is_before(cause: Cause, end: Cause) -> bool:
    """Whether `cause` explains more than `end`: it is earlier in the log, or `end` is general.

    A general exception after a crash, such as Ray's, only reports that crash.
    """
    is_report = end.known is _CRASH and cause.known is not None and cause.known.is_general
    is_general = end.known is not None and end.known.is_general and not is_report
    return cause.line <= end.line or (is_general and cause.known is not STOPPED)


def _describe(failure: Failure, run: Run) -> Cause:
    if failure.own_fault is not None:
        text = _quote(failure.own_fault, OWN_FAULT)
        return Cause(failure.process or failure.role, _phase_of(failure, OWN_FAULT), text, OWN_FAULT, failure.line)
    chain = [each for raised in failure.informative() for each in _inner_first(raised)]
    before = f"{LOADED_FROM_DISK}: " if run.is_loaded_from_disk else ""
    special = [(each, known) for each in chain if (known := _known(each, before, is_general=False))]
    general = [(each, known) for each in chain if (known := _known(each, "", is_general=True))]
    if general and general[0][1] in FAILED_PARTS and _is_refusal(general[0][0].text):
        general = [(general[0][0], SETTING_REFUSED)]
    raised, known = [*special, *general, (chain[0], _last_resort(chain[0], failure))][0]
    if run.hint and not special:
        raised, known = Raised(run.hint.text), run.hint.known
    if known and known.phase == KV_CACHE and _is_beside(failure.process, run.engine):
        known = KV_CACHE_BESIDE
    phase, quote = _phase_of(failure, known), _quote(raised, known)
    cause = Cause(failure.process or failure.role, phase, quote, known, failure.line, origin=raised.package)
    files = raised.files or failure.raised[-1].files
    words = f"{raised.text} {raised.source}"
    cause = _with_context(cause, run, files, words, is_inner=failure.role in _INNER)
    return replace(cause, is_of_library_import=failure.is_of_library_import)


def _with_context(cause: Cause, run: Run, files: Sequence[str], words: str, *, is_inner: bool) -> Cause:
    """Adds what the rest of the log says: the settings in question, a size that fits, the model's class.

    `words` is the exception and the line that raised it.
    """
    known = cause.known
    if known and known.name == _NOT_DIVISIBLE:
        return replace(cause, first_step=run.settings.fitting_size(cause.text))
    if known and not known.is_general and known.name not in (*_OF_MANY_CAUSES, *_OF_SETTINGS):
        return cause
    is_unclear, first_step = known in (None, ERROR_IN_CODE), ""
    if is_unclear or known in FAILED_PARTS or (known and known.name in _OF_MANY_CAUSES):
        part = run.settings.part_of(files)
        known = (part and part.known) or (is_unclear and part_called(files)) or known
        if run.has_no_class and part is None:
            return replace(cause, known=_BY_NAME[_NO_CLASS_CAUSE])
    if run.settings.is_empty and (part := part_shown(files, words, is_unclear=is_unclear)):
        known = part.known if part.known and (is_unclear or known in FAILED_PARTS) else known
        flag = shown_setting(part.settings[0])
        first_step = "" if known is part.known or flag in cause.text else f"Leave out {flag} if it is set."
    settings = run.settings.blamed(files, words, is_unclear=is_inner and known in (None, ERROR_IN_CODE))
    return replace(cause, known=known, settings=tuple(settings), first_step=first_step)


def _is_beside(process: str, engine: str) -> bool:
    """Whether the process belongs to another engine than `engine`, not to another data parallel rank."""
    names = [label.partition(" pid=")[0] for label in (process, engine)]
    return engine == _EARLIER or (engine not in ("", process) and names[0] == names[1])


def _last_resort(raised: Raised, failure: Failure) -> KnownCause | None:
    """The cause of an exception that matches no other: a refused setting, vLLM's code, or None."""
    text = raised.text
    if _is_refusal(text):
        return SETTING_REFUSED
    phase = phase_of_functions(failure.functions) or failure.phase
    is_computed = phase in COMPUTING and text.startswith(_OF_VALUES) and raised.is_of_called_code
    is_computed |= _OF_WORKER in text
    return ERROR_IN_CODE if is_computed or SERVING in (phase, failure.phase) or ERROR_IN_CODE.matches(text) else None


def _is_refusal(text: str) -> bool:
    """Whether an exception recommends or refuses a setting. This says more than the place that raised it."""
    return bool(_RECOMMENDS.search(text) or _REFUSES.match(text))


def _inner_first(raised: Raised) -> list[Raised]:
    """If torch's compiler quotes another exception, puts the more informative quoted exception first."""
    first, _, inner = raised.text.partition("\n")
    return [Raised(inner), raised] if inner and first.endswith("raised:") else [raised]


def _phase_of(failure: Failure, known: KnownCause | None) -> str:
    return (known and known.phase) or phase_of_functions(failure.functions) or failure.phase


def _describe_sign(sign: Cause, run: Run) -> Cause:
    if run.hint and (sign.known is None or sign.known.is_general):
        sign = run.hint
    cause = replace(sign, phase=(sign.known and sign.known.phase) or sign.phase, text=_shorten(sign.text))
    return _with_context(cause, run, run.stack[::-1], "", is_inner=False) if run.stack and sign.known else cause


def _describe_mention(sign: Cause) -> Cause:
    return replace(sign, phase="", text=_shorten(sign.text), is_mention=True)


def _known(raised: Raised, before: str, *, is_general: bool) -> KnownCause | None:
    """The known cause whose texts match the exception's text, alone or with the place that raised it."""
    texts = [before + raised.text] if before else []
    texts += dict.fromkeys((raised.text + raised.place, raised.text))
    causes = [known for known in _OF_EXCEPTIONS if known.is_general == is_general]
    for text in texts:
        first, flat = text.partition("\n")[0], text.replace("\n", " ")
        joined = text.replace("\n", "")  # if a terminal has wrapped the line
        for known in causes:  # if `where` is "end", the text's first line must match
            if known.matches(first) if known.where == "end" else known.matches(flat) or known.matches(joined):
                return known
    return None


def _quote(raised: Raised, known: KnownCause | None) -> str:
    """The most informative line of an exception, shortened."""
    text = raised.text
    if quoted := _QUOTED.search(text):
        return _shorten(quoted[1])
    lines = text.splitlines()
    is_of_pydantic = _PYDANTIC.search(lines[0]) is not None
    if len(lines) > 1 and (lines[0].endswith(_GOES_ON) or is_of_pydantic):
        del lines[0]
        if text.partition("\n")[0].endswith(_OUTPUT):  # output of a compiler
            lines = [next((line for line in lines if _OF_COMPILER.search(line)), lines[0])]
    if is_of_pydantic and len(lines) > 1 and _TYPE not in lines[0]:  # a field, and what is wrong with it
        lines[:2] = [f"{lines[0]}: {lines[1].strip().removeprefix(_OF_PYDANTIC)}"]
    explaining = (line for line in reversed(lines) if known and known.matches(line) and not line.startswith(_POINTER))
    line = next(explaining, lines[0])
    if line == lines[0] and ": " not in line and raised.function:
        line = f"{line.rstrip(':')} in {raised.function}()"
    return _shorten(line.removeprefix(_OF_PYDANTIC))


def _shorten(text: str) -> str:
    text = " ".join(text.partition(_TYPE)[0].split())
    return text if len(text) <= _LONGEST_QUOTE else f"{text[:_LONGEST_QUOTE]} …"
