"""Collects the exceptions of a log, each with its chain, its process and the phase of the start.

Lines of several processes alternate in a log, so the exceptions of several processes are read at the same
time. To limit memory, only two exceptions of each process are kept: the first that ended it, and the last.
"""

import re
from dataclasses import dataclass, field
from itertools import chain
from typing import Final, Literal, NamedTuple

from vllm_cli.explain.log_line import LogLine
from vllm_cli.explain.own_faults import TracebackOrigin
from vllm_cli.explain.table import LISTS, is_of_plugin, is_of_vllm, is_wrapper

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
_ACCESS: Final = ("__getattr__", "__getattribute__")
"""Functions that report a missing attribute. Their caller has asked for it."""
_RAISING: Final = re.compile(r"(?:assert|raise ([A-Z]\w{0,80}))\b\(?(.{0,400})")
"""Matches the line that raises an exception, which shows it if the log breaks off there, unlike `raise e`."""
_ANY_NAME: Final = re.compile(r"(?!File$)[A-Za-z_][\w.]{0,160}(?=: |:?$)")
_ERROR_NAME: Final = re.compile(
    r"(?!Error: )(?:[A-Za-z_]\w{0,80}\.){0,8}\w{0,80}"
    r"(?:Error|Exception|Interrupt|Exit|Failed|Failure|Timeout|IsEnabled|NotFound|Unsupported)(?=: |:?$)"
    r"|[a-z_]\w{0,80}(?:\.[a-z_]\w{0,80}){1,8}\.[A-Z][a-z]\w{1,80}(?=: |:?$)"
)
"""Matches the name of an exception, even without a traceback. `Error: ` begins messages of other programs."""

_PROCESS_HEADER: Final = re.compile(r"Process \S{1,80}:$")
"""The line that multiprocessing prints before the traceback that ends a process."""
_REQUEST_PLACES: Final = re.compile(
    r"serving\w{0,60}\.py|protocol\.py|chat_utils\.py|api_router\.py|basic\.py|\w{0,60}_(?:tool|reasoning)_parser\.py"
)
_REQUEST_FRAME: Final = re.compile(
    r"(?:/serving\w{0,60}|/tool_parsers/\w{1,60}|_(?:tool|reasoning)_parser)\.py (?!__init__|<)"
    r"|/routing\.py run_endpoint_function"
)
"""Matches a frame of code that handles one request of a client."""
_STARTING: Final = frozenset(("run_server", "run_server_worker", "init_app_state"))
"""Functions that start the API server, also with code that handles requests. No request is below them."""
HARMLESS_LEVELS: Final = ("DEBUG", "INFO", "WARNING")
_QUOTES: Final = "raised:"
"""The ending of a message's first line, if torch's compiler quotes an exception below."""
_ROLES: Final = [(role, tuple(names)) for role, names in LISTS["roles"].items()]
"""Role of a process -> beginnings of its label, and files that log its lines."""


def is_place_of_requests(place: str) -> bool:
    """Whether this source file logs errors that concern only one request of a client."""
    return bool(_REQUEST_PLACES.fullmatch(place))


def package_of(file: str) -> str:
    """The installed package that this file belongs to. Empty if it belongs to none."""
    return file.rpartition("-packages/")[2].partition("/")[0] if "-packages/" in file else ""


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

    functions: tuple[str, ...] = ()
    """The functions of its traceback, outermost first."""

    @property
    def place(self) -> str:
        """The function and file that raised this exception, written as in `KnownCause.texts`."""
        return f" in {self.function}() of {''.join(self.files[-1:])}" if self.function else ""

    @property
    def spots(self) -> tuple[str, ...]:
        """The innermost frame that is no wrapper, and that of vLLM, written as in `KnownCause.raised_in`."""
        frames = [
            (file, f"{file} {function}()")
            for file, function in zip(reversed(self.files), reversed(self.functions), strict=False)
            if not is_wrapper(file) and function not in _ACCESS
        ]
        of_vllm = next((spot for file, spot in frames if is_of_vllm(file)), "")
        innermost = frames[0][1] if frames else ""
        return tuple(dict.fromkeys(filter(None, (innermost, of_vllm))))

    @property
    def spot(self) -> str:
        """The innermost frame that is no wrapper. Empty if unknown."""
        return next(iter(self.spots), "")

    @property
    def is_of_vllm(self) -> bool | None:
        """Whether code of vLLM raised this exception, apart from wrappers. None if unknown."""
        spot = self.spot
        return is_of_vllm(spot.rpartition(" ")[0]) if spot else None

    @property
    def package(self) -> str:
        """The installed package whose code raised this exception, apart from wrappers. Empty if unknown."""
        file = self.spot.rpartition(" ")[0]
        return package_of(file or "".join(self.files[-1:]))


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
    """Whether Python only reports the exception, or a program logs it as harmless. It ended nothing."""
    is_apart: bool = False
    """Whether an empty line follows the message so far."""
    is_source_next: bool = False
    """Whether the next line is the source code of a frame, if the log has lost its indentation."""

    def informative(self) -> list[Raised]:
        """The chain's exceptions, the most informative first. Mere reports of others are left out.

        An exception comes before its consequences, which it caused or which were raised while Python handled
        it. An exception that code catches by design, to raise a better one, comes after the better one.
        """
        ordered: list[Raised] = []
        is_direct = False
        for number, each in enumerate(reversed(self.raised)):
            name = each.text.partition(":")[0].rpartition(".")[2]
            is_cause = number and (is_direct or not any(part in name for part in LISTS["caught"]))
            ordered.insert(0 if is_cause else len(ordered), each)
            is_direct = each.is_direct
        return [each for each in ordered if not any(part in each.text for part in LISTS["reports"])]

    @property
    def is_of_executor(self) -> bool:
        """Whether the engine core's executor raised this exception because a worker had one."""
        return self.role == "engine core" and "/executor/" in self.raised[-1].spot

    @property
    def first(self) -> str:
        """The first line of the chain's first exception that is no mere report of another."""
        informative = self.informative()
        return next(each for each in self.raised if each in informative).text.partition("\n")[0]

    @property
    def role(self) -> str:
        """`worker`, `engine core`, `API server`, or empty if unknown."""
        by_label = (role for role, names in _ROLES if self.process.startswith(names))
        by_place = (role for role, names in _ROLES if self.place in names)
        return next(chain(by_label, by_place), "")


class FailureReader:
    """Takes the lines of a run one by one. At the end, `failures` returns the exceptions in them."""

    def __init__(self) -> None:
        self._readings: dict[_Key, Failure] = {}
        self._endings: set[_Key] = set()
        self._kept: dict[_Key, list[Failure]] = {}
        self.report: Failure | None = None
        """The last exception that only reports another one. None if there is none."""
        self.cut: Failure | None = None
        """The first traceback of the start that breaks off before its exception. None if there is none."""
        self._ignored: set[_Key] = set()
        """Keys whose last line says that Python ignores the exception that follows."""
        self.is_in_ignored = False
        """Whether the last line belongs to an exception that Python only reports."""
        self.has_place = False
        """Whether the last line belongs to an exception whose frames the log shows."""
        self.is_source = False
        """Whether the last line is the source code of a frame."""
        self.programs: set[str] = set()
        """Whose files the frames name: `vllm`, `client` (vLLM's benchmarks), `other`, or empty for Python."""
        self.has_request = False
        """Whether an exception concerned only a request of a client, so that the server served."""
        self._wrapped: _Key | None = None
        """The key of the last line if it is an exception that may continue in lines without a label."""

    def failures(self) -> list[Failure]:
        """The exceptions in order, except mere reports of another one. Call this after the last line."""
        for key in [*self._readings]:
            self._end(key)
        found = [failure for kept in self._kept.values() for failure in kept]
        return sorted(found, key=lambda failure: failure.line)

    def read(self, line: LogLine, number: int, phase: str) -> None:
        """Takes the line with this number."""
        key = (line.process, line.place)
        text = line.text
        wrapped = self._wrapped
        goes_on = text[:2] == "  " and key not in self._readings
        if wrapped and goes_on and ("", "") in (key, wrapped):
            key = wrapped
            line = line._replace(process=key[0], place=key[1])
        else:
            self._wrapped = None
        ending = next((ending for ending in LISTS["endings"] if ending in text), None)
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
            reading.state, reading.lines, reading.origin = "frames", 0, TracebackOrigin()
            reading.function, reading.files = "", []
            reading.indent = len(text) - len(text.lstrip())
        elif reading is None:
            self._begin_inside(line, number, phase)
        elif reading.state == "frames":
            self._read_frame(reading, _outdent(line, reading.indent), number)
        else:
            self._read_message(reading, _outdent(line, reading.indent), number, phase)
        is_announced = text.startswith(_IGNORED) and len(self._ignored) < _MOST_PROCESSES
        (self._ignored.add if is_announced else self._ignored.discard)(key)
        reading = self._readings.get(key)
        self.is_in_ignored = is_announced or (reading is not None and reading.is_ignored)
        self.has_place = reading is not None and bool(reading.files)
        self.is_source = text[:1] in " \t" and reading is not None and reading.state == "frames"

    def _open(self, line: LogLine, number: int, phase: str) -> Failure:
        if len(self._readings) >= _MOST_PROCESSES:
            self._end(next(iter(self._readings)))
        key = (line.process, line.place)
        is_ending = key in self._endings
        failure = Failure(*key, number, phase=phase, is_ending=is_ending)
        failure.is_of_request = is_place_of_requests(line.place)
        failure.is_ignored = line.level in HARMLESS_LEVELS or key in self._ignored
        self._readings[key] = failure
        return failure

    def _end(self, key: _Key) -> None:
        reading = self._readings.pop(key, None)
        if reading is None or reading.is_ignored:
            return
        if not reading.raised and (found := _RAISING.match(reading.source)):
            self._add(reading, f"{found[1] or 'AssertionError'}: {found[2]}", reading.line)
        if not reading.raised:
            self.cut = self.cut or reading
            return
        if not reading.informative():
            self.report = reading
            return
        kept = self._kept.get(key, [])
        if len(self._kept) < _MOST_PROCESSES:
            self._kept[key] = kept
        if not kept:
            kept.append(reading)
        elif kept[-1].raised[-1].text == reading.raised[-1].text:  # written again where it ends the process
            kept[-1].is_ending |= reading.is_ending
        else:
            kept[1:] = [reading]

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

    def _read_frame(self, reading: Failure, line: LogLine, number: int) -> None:
        text = line.text
        is_source, reading.is_source_next = reading.is_source_next, False
        if found := _FRAME.match(text):
            self.programs.add(_program_of(found[1]))
            reading.origin.add_frame(found[1], found[2])
            reading.function, reading.source = found[2], ""
            if len(reading.functions) < _MOST_FUNCTIONS:
                reading.functions.append(found[2])
                reading.files.append(found[1])
            reading.is_source_next = text[0] == "F"
        elif text.strip() and text[0] not in " \t" and (not is_source or _ERROR_NAME.match(text)):
            reading.lines += 1
            is_name = _ERROR_NAME if line.level in HARMLESS_LEVELS else _ANY_NAME
            if is_name.match(text):
                self._add(reading, text, number)
            elif reading.lines > _MOST_STRANGE_LINES:
                self._end((line.process, line.place))
        elif not reading.source:
            reading.source = text.strip()

    def _read_message(self, reading: Failure, line: LogLine, number: int, phase: str) -> None:
        text = line.text
        if text.startswith((_DIRECT, _HANDLING)):
            reading.state, reading.is_direct, reading.lines = "linked", text.startswith(_DIRECT), 0
        elif not text.strip():
            reading.is_apart = True
        elif (
            reading.state == "linked"
            or reading.lines >= _MOST_LINES
            or (_ERROR_NAME.match(text) and not _is_quoted(reading))
        ):
            self._end((line.process, line.place))
            self._begin_inside(line, number, phase)
        else:
            reading.lines += 1
            last, end = reading.raised.pop(), "\n\n" if reading.is_apart else "\n"
            reading.raised.append(last._replace(text=f"{last.text}{end}{text.strip()}"[:_LONGEST_TEXT]))
            reading.is_apart = False

    def _add(self, reading: Failure, text: str, number: int) -> None:
        """Adds an exception to the chain. A long chain keeps its first exceptions and its last one."""
        if not reading.raised:
            reading.line = number
        if len(reading.raised) == _MOST_IN_CHAIN:
            reading.raised.pop()
        text = text.strip()
        files = tuple(reading.files)
        functions = tuple(reading.functions[len(reading.functions) - len(files) :])
        raised = Raised(text[:_LONGEST_TEXT], reading.is_direct, reading.function, reading.source, files, functions)
        reading.raised.append(raised)
        frames = map(" ".join, zip(files, functions, strict=False))
        if _STARTING.isdisjoint(functions) and any(map(_REQUEST_FRAME.search, frames)):
            reading.is_of_request = self.has_request = True
        reading.is_of_library_import |= reading.function == "<module>" and raised.package != ""
        if reading.own_fault is None and reading.origin.is_own(text):
            reading.own_fault = raised
        reading.functions.append("")
        self._wrapped = (reading.process, reading.place)
        reading.state, reading.is_direct, reading.is_apart, reading.lines = "message", False, False, 0


def _program_of(file: str) -> str:
    if is_of_vllm(file) or is_of_plugin(file) or "vllm_cli" in file:
        return "client" if "/vllm/benchmarks/" in file else "vllm"
    return "other" if "-packages/" in file or "/lib/python3" not in file else ""


def _is_quoted(reading: Failure) -> bool:
    """Whether the message of the exception quotes another exception in its later lines."""
    return reading.raised[-1].text.endswith(_QUOTES)


def _outdent(line: LogLine, columns: int) -> LogLine:
    before, rest = line.text[:columns], line.text[columns:]
    return line._replace(text=rest) if before.isspace() else line
