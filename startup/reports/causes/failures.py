"""Collects the exceptions of a log, each with its chain, its process and the phase of the start.

Lines of several processes alternate in a log, so the exceptions of several processes are read at the same
time. To limit memory, only two exceptions of each process are kept: the first that ended it, and the last.
"""

import re
from dataclasses import dataclass, field
from itertools import chain
from typing import Final, Literal, NamedTuple

from startup.reports.causes.log_line import LogLine
from startup.reports.causes.own_faults import TracebackOrigin

Role = Literal["worker", "engine core", "API server", ""]

_MOST_PROCESSES: Final = 512
_MOST_IN_CHAIN: Final = 8
_MOST_LINES: Final = 12
_MOST_STRANGE_LINES: Final = 20
_MOST_FUNCTIONS: Final = 200
_LONGEST_TEXT: Final = 2_000

_Key = tuple[str, str]
"""A process's label and the file that logged the line. An exception's lines have the same key."""

_TRACEBACK: Final = ("Traceback (most recent call last):", "Traceback (most recent call last)")
"""Ends of the line before a traceback. Notebooks leave out the colon."""
_IGNORED: Final = "Exception ignored "
"""The beginning of the line before a traceback that Python only reports, such as the one of a destructor."""
_DIRECT: Final = "The above exception was the direct cause of the following exception:"
_HANDLING: Final = "During handling of the above exception, another exception occurred:"
_FRAME: Final = re.compile(r'\s{0,8}File ["“]([^"”]{1,400})["”], line \d{1,8}, in (\S{1,120})')
_RAISING: Final = re.compile(r"(?:assert|raise (\w{1,80}))\b\(?(.{0,400})")
"""Matches the line that raises an exception, which shows it if the log breaks off there."""
_ANY_NAME: Final = re.compile(r"(?!File$)[A-Za-z_][\w.]{0,160}(?=: |:?$)")
_ERROR_NAME: Final = re.compile(
    r"(?!Error: )(?:[A-Za-z_]\w{0,80}\.){0,8}\w{0,80}"
    r"(?:Error|Exception|Interrupt|Exit|Failed|Failure|Timeout|IsEnabled|NotFound)(?=: |:?$)"
)
"""Matches the name of an exception, even without a traceback. `Error: ` begins messages of other programs."""

ENDINGS: Final = (
    "EngineCore failed to start",
    "EngineCore encountered a fatal error",
    "EngineCore hit an exception",
    "WorkerProc failed to start",
    "WorkerProc hit an exception",
    "Exception in worker",
    "Error executing method",
    "Engine background task failed",
    "AsyncLLM output_handler failed",
    "Initialization failed. warmup error",
    "the engine failed",
)
"""Messages before the traceback that ends a process. The last message is the embedded engine's."""
REPEATS: Final = (
    "Engine core initialization failed",
    "Engine process failed to start",
    "initialization failed due to an exception in a background process",
    "EngineDeadError",
)
"""Messages of exceptions that only report that another process has failed."""
_REFERENCES: Final = (
    *REPEATS,
    "EngineCore encountered an issue",
    "Executor failed.",
    "Engine loop is not running",
    "Background loop has errored",
    "Background loop is stopped",
    "Backend subprocess died",
    "CancelledError",
    "ensure_kv_transfer_shutdown",
    "SystemExit: 1",
    "operation failed due to a previous error during capture",
    "ZMQError: Operation not supported",
    "ChildProcessError: worker died",
    "RuntimeError: cancelled",
    "Worker failed with error ''",
    "Error: ', please check the stack trace",
)
"""Messages of exceptions that report another failure, or follow from one."""
_PROCESS_HEADER: Final = re.compile(r"Process \S{1,80}:$")
"""The line that multiprocessing prints before the traceback that ends a process."""
_REQUEST_PLACES: Final = re.compile(r"serving\w{0,60}\.py|protocol\.py|chat_utils\.py|api_router\.py|basic\.py")
HARMLESS_LEVELS: Final = ("DEBUG", "INFO", "WARNING")
_QUOTES: Final = ("raised:", "TorchScript interpreter.")
"""Endings of a message's first line, if torch's compiler or TorchScript quotes an exception below."""
_REQUEST_FILES: Final = re.compile(r"/(?:starlette|fastapi|uvicorn/protocols|entrypoints/openai/serving)")
_ROLE_LABELS: Final[dict[Role, tuple[str, ...]]] = {
    "engine core": ("EngineCore", "engine"),
    "API server": ("APIServer", "ApiServer"),
    "worker": ("Worker", "VllmWorker", "RayWorker"),
}
_ROLE_FRAMES: Final[dict[Role, tuple[str, ...]]] = {
    "worker": ("worker_main", "worker_busy_loop", "_run_worker_process", "execute_method"),
    "engine core": ("run_engine_core", "run_mp_engine"),
    "API server": ("run_server",),
}
_ROLE_PLACES: Final[dict[Role, tuple[str, ...]]] = {
    "engine core": ("core.py", "engine.py", "async_llm_engine.py"),
    "worker": ("multiproc_executor.py", "multiproc_worker_utils.py", "worker_base.py"),
}
"""Role of a process -> beginnings of its label, functions in its tracebacks, and files that log its lines."""


def is_place_of_requests(place: str) -> bool:
    """Whether this source file logs errors that concern only one request of a client."""
    return bool(_REQUEST_PLACES.fullmatch(place))


class Raised(NamedTuple):
    """One exception of a chain. All but its text may be unknown."""

    text: str
    """`Type: message`. The message may have several lines."""
    is_direct: bool = False
    """Whether the previous exception caused this one. If not, this one was raised while it was handled."""
    function: str = ""
    """The function that raised the exception."""
    source: str = ""
    """The innermost Python line of its traceback."""
    files: tuple[str, ...] = ()
    """The files of its traceback, outermost first."""

    @property
    def place(self) -> str:
        """The function and file that raised this exception, written as in `KnownCause.texts`."""
        return f" in {self.function}() of {self._file}" if self.function else ""

    @property
    def package(self) -> str:
        """The installed package whose code raised this exception. Empty if unknown."""
        return self._file.rpartition("-packages/")[2].partition("/")[0] if "-packages/" in self._file else ""

    @property
    def is_of_called_code(self) -> bool:
        """Whether the innermost Python line is known and called other code that raised this exception."""
        return self.source != "" and not self.source.startswith(("raise", "assert"))

    @property
    def _file(self) -> str:
        return "".join(self.files[-1:])


@dataclass
class Failure:
    """An exception, and the exceptions that led to it (its chain)."""

    process: str
    """The label of the process in the log. Empty if its lines have no label."""
    place: str
    line: int
    """The number of the line with which the exception begins."""
    raised: list[Raised] = field(default_factory=list)
    """The exceptions of the chain, in the order of the log."""
    functions: list[str] = field(default_factory=list)
    """The functions of all tracebacks, outermost first. An empty name ends each traceback."""
    is_ending: bool = False
    """Whether the log shows that this exception ended the process."""
    is_of_request: bool = False
    """Whether the exception concerns only one request of a client."""
    own_fault: Raised | None = None
    """The chain's first exception that is vllm-cli's fault."""
    is_of_library_import: bool = False
    """Whether an installed module raised an exception of the chain while it was imported."""
    phase: str = ""

    def informative(self) -> list[Raised]:
        """The chain's exceptions, the most informative first. Mere references are left out.

        A direct cause is more informative than the exception that it caused. An exception that was raised
        while Python handled another one is usually more informative than the handled exception.
        """
        ordered: list[Raised] = []
        is_cause = False
        for each in reversed(self.raised):
            ordered.insert(0 if is_cause else len(ordered), each)
            is_cause = each.is_direct
        return [each for each in ordered if not any(part in each.text for part in _REFERENCES)]

    @property
    def role(self) -> Role:
        by_label = (role for role, begins in _ROLE_LABELS.items() if self.process.startswith(begins))
        by_frame = (role for role, names in _ROLE_FRAMES.items() if any(name in self.functions for name in names))
        by_place = (role for role, places in _ROLE_PLACES.items() if self.place in places)
        return next(chain(by_label, by_frame, by_place), "")


@dataclass
class _Reading:
    failure: Failure
    origin: TracebackOrigin = field(default_factory=TracebackOrigin)
    """Decides whether the traceback that is being read is a fault of vllm-cli."""
    state: Literal["frames", "message", "linked"] = "message"
    """The place of the next line: a traceback (`frames`), an exception's message after its first line
    (`message`), or the text between two exceptions of the chain (`linked`)."""
    is_direct: bool = False
    """Whether the text between two exceptions says that the first caused the second."""
    lines: int = 0
    """In the state `message`, the number of the message's further lines. Otherwise of unexpected lines."""
    indent: int = 0
    """Columns by which the whole traceback is indented, for example inside a longer message."""
    function: str = ""
    source: str = ""
    """The first line of code in the innermost frame."""
    files: list[str] = field(default_factory=list)
    """The files of the traceback that is being read."""
    is_ignored: bool = False
    """Whether Python only reports the exception, which ended nothing."""
    is_source_next: bool = False
    """Whether the next line is the source code of a frame, if the log has lost its indentation."""


class FailureReader:
    """Takes the lines of a run one by one. At the end, `failures` returns the exceptions in them."""

    def __init__(self) -> None:
        self._readings: dict[_Key, _Reading] = {}
        self._endings: set[_Key] = set()
        self._kept: dict[_Key, list[Failure]] = {}
        self.reference: Failure | None = None
        """The first exception that only reports another one. None if there is none."""
        self.cut: Failure | None = None
        """The first traceback of the start that breaks off before its exception. None if there is none."""
        self._ignored: _Key | None = None
        """The key of the last line if Python ignores the exception that follows."""
        self._wrapped: _Key | None = None
        """The key of the last line if it is an exception that may continue in lines without a label."""

    def failures(self) -> list[Failure]:
        """The exceptions in order, except mere reports of another one. Call this after the last line."""
        for key in [*self._readings]:
            self._end(key)
        found = [failure for kept in self._kept.values() for failure in kept]
        return sorted(found, key=lambda failure: failure.line)

    def read(self, line: LogLine, number: int, phase: str) -> None:
        key = (line.process, line.place)
        text = line.text
        is_wrapped = self._wrapped is not None and ("", "") in (key, self._wrapped)
        if self._wrapped and is_wrapped and key not in self._readings and text[:2] == "  ":
            key = self._wrapped
            line = line._replace(process=key[0], place=key[1])
        else:
            self._wrapped = None
        ending = next((ending for ending in ENDINGS if ending in text), None)
        if ending or _PROCESS_HEADER.match(text):
            self._end(key)
            explanation = text.partition(ending)[2].lstrip(" .:") if ending else ""
            line = line._replace(text=explanation or text)
            if len(self._endings) < _MOST_PROCESSES:
                # multiprocessing prints the same exception again, without the file's name.
                self._endings |= {key, (line.process, "")}
        reading = self._readings.get(key)
        if text.endswith(_TRACEBACK):
            if reading is None or reading.state != "linked":
                self._end(key)
                reading = self._open(line, number, phase)
                reading.is_ignored = self._ignored == key
            reading.state, reading.lines, reading.origin = "frames", 0, TracebackOrigin()
            reading.function, reading.files = "", []
            reading.indent = len(text) - len(text.lstrip())
        elif reading is None:
            self._begin_inside(line, number, phase)
        elif reading.state == "frames":
            self._read_frame(reading, _outdent(line, reading.indent), number)
        else:
            self._read_message(reading, _outdent(line, reading.indent), number, phase)
        self._ignored = key if text.startswith(_IGNORED) else None

    def _open(self, line: LogLine, number: int, phase: str) -> _Reading:
        if len(self._readings) >= _MOST_PROCESSES:
            self._end(next(iter(self._readings)))
        key = (line.process, line.place)
        failure = Failure(line.process, line.place, number, phase=phase, is_ending=key in self._endings)
        failure.is_of_request = is_place_of_requests(line.place) or line.level in HARMLESS_LEVELS
        reading = self._readings[key] = _Reading(failure)
        return reading

    def _end(self, key: _Key) -> None:
        reading = self._readings.pop(key, None)
        if reading is None or reading.is_ignored:
            return
        if not reading.failure.raised and (found := _RAISING.match(reading.source)):
            self._add(reading, f"{found[1] or 'AssertionError'}: {found[2]}", reading.failure.line)
        if not reading.failure.raised:
            if not reading.failure.is_of_request or is_place_of_requests(reading.failure.place):
                self.cut = self.cut or reading.failure
            return
        if not reading.failure.informative():
            self.reference = self.reference or reading.failure
            return
        kept = self._kept.get(key)
        if kept is None:
            if len(self._kept) < _MOST_PROCESSES:
                self._kept[key] = [reading.failure]
        elif kept[-1].raised[-1].text == reading.failure.raised[-1].text:  # written again where it ends the process
            kept[-1].is_ending |= reading.failure.is_ending
        elif kept[0].is_ending:
            kept[1:] = [reading.failure]
        else:
            kept[:] = [reading.failure]

    def _begin_inside(self, line: LogLine, number: int, phase: str) -> None:
        """Begins an exception that has no traceback, or whose traceback's first lines are cut off."""
        if line.level in HARMLESS_LEVELS:
            return
        if _ERROR_NAME.match(line.text):
            self._add(self._open(line, number, phase), line.text, number)
        elif _FRAME.match(line.text):
            reading = self._open(line, number, phase)
            reading.state = "frames"
            self._read_frame(reading, line, number)

    def _read_frame(self, reading: _Reading, line: LogLine, number: int) -> None:
        text = line.text
        is_source, reading.is_source_next = reading.is_source_next, False
        if found := _FRAME.match(text):
            reading.origin.add_frame(found[1], found[2])
            reading.function, reading.source = found[2], ""
            if len(reading.failure.functions) < _MOST_FUNCTIONS:
                reading.failure.functions.append(found[2])
                reading.files.append(found[1])
            # While such a file is imported, no request is being served.
            if found[2] != "<module>" and _REQUEST_FILES.search(found[1]):
                reading.failure.is_of_request = True
            reading.is_source_next = text[0] == "F"
        elif text.strip() and text[0] not in " \t" and (not is_source or _ERROR_NAME.match(text)):
            reading.lines += 1
            if _ANY_NAME.match(text) and line.level not in HARMLESS_LEVELS:
                self._add(reading, text, number)
            elif reading.lines > _MOST_STRANGE_LINES:
                self._end((line.process, line.place))
        elif not reading.source:
            reading.source = text.strip()

    def _read_message(self, reading: _Reading, line: LogLine, number: int, phase: str) -> None:
        text = line.text
        if text.startswith((_DIRECT, _HANDLING)):
            reading.state, reading.is_direct, reading.lines = "linked", text.startswith(_DIRECT), 0
        elif not text.strip():
            return
        elif (
            reading.state == "linked"
            or reading.lines >= _MOST_LINES
            or (line.level and not line.place)
            or (_ERROR_NAME.match(text) and not _is_quoted(reading))
        ):
            self._end((line.process, line.place))
            self._begin_inside(line, number, phase)
        elif not (
            _is_quoted(reading) and (text.startswith((" ", "Traceback of TorchScript")) or _is_code(reading, text))
        ):
            reading.lines += 1
            last = reading.failure.raised.pop()
            reading.failure.raised.append(last._replace(text=f"{last.text}\n{text.strip()}"[:_LONGEST_TEXT]))

    def _add(self, reading: _Reading, text: str, number: int) -> None:
        """Adds an exception to the chain. A long chain keeps its first exceptions and its last one."""
        failure = reading.failure
        if not failure.raised:
            failure.line = number
        if len(failure.raised) == _MOST_IN_CHAIN:
            failure.raised.pop()
        text = text.strip()
        files = tuple(reading.files)
        raised = Raised(text[:_LONGEST_TEXT], reading.is_direct, reading.function, reading.source, files)
        failure.raised.append(raised)
        failure.is_of_library_import |= reading.origin.is_of_library_import
        if failure.own_fault is None and reading.origin.is_own(text):
            failure.own_fault = raised
        failure.functions.append("")
        self._wrapped = (failure.process, failure.place)
        reading.state, reading.is_direct, reading.lines = "message", False, 0


def _is_quoted(reading: _Reading) -> bool:
    """Whether the message of the exception quotes another exception in its later lines."""
    return reading.failure.raised[-1].text.endswith(_QUOTES)


def _is_code(reading: _Reading, text: str) -> bool:
    """Whether `text` is a line of code that TorchScript quotes."""
    return reading.failure.raised[-1].text.endswith(_QUOTES[1]) and not _ERROR_NAME.match(text)


def _outdent(line: LogLine, columns: int) -> LogLine:
    return line._replace(text=line.text[columns:]) if columns and line.text[:columns].isspace() else line
