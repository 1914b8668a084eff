"""Reads a line of a log of vLLM: the process that wrote it, its level, and its text without prefixes.

Docker, Kubernetes, journald, Ray, torch and terminals put prefixes before vLLM's own. The indentation after
the last prefix stays, because it distinguishes a traceback's frames from its exception.
"""

import codecs
import re
from collections.abc import Iterator
from itertools import pairwise
from typing import Any, BinaryIO, Final, NamedTuple

from base.json_depth import read_json

_CHUNK: Final = 1 << 18
LONGEST_LINE: Final = 16_384
"""The most characters of a line that are read."""
_HEAD: Final = 300
"""vLLM's own prefixes begin within this many characters."""
_MOST_PREFIXES: Final = 8
_MOST_JSON_LINES: Final = 400

_COLOUR: Final = re.compile(r"(?:\x1b|\^\[|\ufffd)?\[[0-9;]{1,16}m|\x1b\[[0-9;?]{0,16}[A-Za-z]")
"""Matches control sequences. Matches colors even if a copy has changed or lost their escape character."""
_PROCESS: Final = re.compile(
    r"\(([A-Za-z][^()]{0,80}?\bpid=\d{1,12}|(?:EngineCore|Worker|APIServer)\w{0,40}(?=\)))[^()]{0,80}\) ?"
)
"""Matches `(EngineCore_DP0 pid=123)`, `(Worker_TP1 pid=5)`, `(RayWorkerWrapper pid=7, ip=10.0.0.2)` and `(x,
pid=9)`. Some older and newer versions of vLLM write `(EngineCore)` without a pid."""
_DATE: Final = r"(?:\d\d-\d\d |\d{4}-\d\d-\d\dT)\d\d:\d\d:\d\dZ? "
"""Matches `09-03 11:03:37 `, or `2026-09-03T11:03:37Z ` of `--log-format text-utc`."""
_RECORD: Final = re.compile(
    rf"\b(DEBUG|INFO|WARNING|ERROR|CRITICAL) (?:{_DATE}|\d{{1,7}} )?"
    r"\[?([\w./\\-]{1,80}\.pyx?):\d{1,6}\] ?"
)
"""Matches text such as `ERROR 09-03 11:03:37 [core.py:712] `. Old versions of vLLM write no brackets."""
_GLUED: Final = re.compile(
    rf"(?:\([^()]{{1,80}}\) ){{0,2}}(?:DEBUG|INFO|WARNING|ERROR|CRITICAL) {_DATE}\[[\w./]{{1,80}}:\d"
)
"""Matches the beginning of a record in the middle of a line, because a log may have lost its line breaks."""
_OWN_RECORD: Final = re.compile(rf"(DEBUG|INFO|WARNING|ERROR|CRITICAL) {_DATE}\(([\w -]{{1,40}})\) [\w.-]{{1,120}}: ")
"""Matches prefixes of `vllm-cli`, such as `ERROR 09-03 11:03:37 (engine) server.engine.engine_process: `."""
_UVICORN: Final = re.compile(r"(DEBUG|INFO|WARNING|ERROR|CRITICAL): {1,8}")
_GLOG: Final = re.compile(r"\[?([WEF])\d{3,4} \d\d:\d\d:\d\d\.\d{1,9} (?:\d{1,10} )?[\w./-]{1,80}:\d{1,6}\] ?")
"""Matches prefixes of C++ code, for example of torch: `[E716 19:47:26.324586583 Pool.cpp:523] `."""
_GLOG_LEVELS: Final = {"W": "WARNING", "E": "ERROR", "F": "CRITICAL"}
_PLACE: Final = re.compile(r"\[?([\w./-]{1,80}\.py):\d{1,6}\] ?")
_CSV: Final = re.compile(r'"?(?:\d{13}|\d{4}-\d\d-\d\d[T ][\d:.]{8,18}Z?)"?,(?!\d{3}\b)("?)(.*)')
"""Matches a row of a table of CloudWatch, as SageMaker's logs are exported: a time and a message."""
_LINE_NUMBER: Final = re.compile(r" {0,7}(\d{1,7})(?:[:|] ?|\t|  ?)")
_MARGIN: Final = re.compile(r'\s{3,16}(?=  File "|(?!File ")\S)')
_PREFIXES: Final = (
    re.compile(r"(?:DEFAULT|DEBUG|INFO|WARNING|ERROR|CRITICAL) (?=\d{4}-\d\d-\d\dT)"),
    re.compile(r"(?:- )?(?:[\w.]{1,60} - )?(?:DEBUG|INFO|WARNING|ERROR|CRITICAL) - "),
    re.compile(r"[a-z\d]{10,20}\[(?:debug|info|warn|warning|error)\]"),
    re.compile(r"\[1,[\w:,-]{1,60}\]<std(?:err|out)>:"),
    re.compile(r"\[?\d{4}-\d\d-\d\d[T ]\d\d:\d\d:\d\d(?:[.,]\d{1,9})?(?:Z|[+-]\d\d:?\d\d)?\]? ?"),
    re.compile(r"(?:stdout|stderr) [FP] ?"),
    re.compile(r"[A-Z][a-z]{2} [ \d]\d \d\d:\d\d:\d\d [\w.-]{1,80} [\w.@/-]{1,80}(?:\[\d{1,10}\])?: ?"),
    re.compile(r"\d\d:\d\d:\d\d(?:[.,]\d{1,6})? "),
    re.compile(r"\d{1,8}(?:\.\d{1,6})?s \d{1,9} ?"),
    re.compile(r"[\w.-]{1,80} {0,40}\| ?"),
    re.compile(r"\[(?!Errno)[\w ./:=,+-]{1,80}\]:? ?"),
    re.compile(r" {0,4}\| ?"),
    re.compile(r">{1,3} "),
    re.compile(r"│ ?"),
    re.compile(r"\((?:Process|raylet)\) "),
    re.compile(r"[a-z\d][a-z\d.-]{0,200}-(?:\d{1,4}|[bcdfghjklmnpqrstvwxz2456789]{5}) [a-z\d][a-z\d-]{0,62} "),
    re.compile(r"(?:vLLM )?(?:STDOUT|STDERR|stdout|stderr)(?: \||:) ?"),
)
"""The first patterns match prefixes of Google's log explorer, of Python's logging, RunPod and MPI. Then come
ISO times and the prefixes of containerd, journald, syslog, plain times, notebooks and Docker compose. The
others match brackets such as `[rank0]:` and `[pod/name/container]`, log formats with bars, frames of
terminals, quotations, Ray, stern, and supervisors."""
_PYTHON: Final = ("Traceback (most recent call last):", '  File "')

_JSON_MESSAGES: Final = ("log", "message", "msg", "MESSAGE", "textPayload", "event", "line")
_JSON_TRACES: Final = ("exception", "exc_info", "stack_trace", "traceback", "stack")
_LEVELS: Final = ("DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL")
_HARMLESS: Final = ("DEBUG", "INFO", "WARNING")
_JSON_LOGGERS: Final = ("logger", "logger_name", "name", "levelname", "module", "filename", "role", *_JSON_TRACES)
"""Members that records of the program itself have, whose level is the program's."""
_JSON_LEVELS: Final = ("level", "levelname", "severity")


_TIME: Final = re.compile(r"\d\d:\d\d:\d\d")
_JOINED: Final = re.compile(r'Traceback \(most recent call last\):.{1,120}?File "')
"""Matches lines of a traceback in one line. In a JSON record, the quote has a backslash before it."""
_ARRAY: Final = re.compile(r"\s{0,20}\[\s{0,20}\{")
_LEAST_BACK: Final = 2
_MOST_ON: Final = 0.25


class LogLine(NamedTuple):
    """A line without its prefixes, and the facts in the prefixes."""

    process: str
    """vLLM's label of the process, such as `EngineCore_DP0 pid=123`. Empty if the line has no label."""
    level: str
    """The level, such as `ERROR`. Empty if the line was printed instead of logged."""
    place: str
    """The source file that logged the line, such as `core.py`. Empty if unknown."""
    text: str


class LineReader:
    """Parses the lines of one log, which may all be indented or numbered."""

    def __init__(self) -> None:
        self._margin: str | None = None
        """The blanks before each line so far. None before the first line."""
        self._offset = 0
        """The difference between the last number at the beginning of a line and the line's own number."""

    def read(self, raw: str, number: int) -> Iterator[LogLine]:
        """Parses the line with this number, as `read_line` does."""
        found = _LINE_NUMBER.match(raw)
        offset, self._offset = self._offset, int(found[1]) - number if found else self._offset
        if found and offset == self._offset:
            raw = raw[found.end() :]
        if raw.strip():
            if self._margin is None:
                self._margin = found[0] if (found := _MARGIN.match(raw)) else ""
            if raw[0].isspace() and not raw.startswith(self._margin):
                self._margin = ""
        return read_line(raw.removeprefix(self._margin or ""))


class LogForm:
    """Notices lines in an order or a form in which they do not show what failed first."""

    def __init__(self) -> None:
        self.is_array = False
        """Whether a line is a JSON array of records."""
        self._is_joined = self._has_traceback = False
        self._time = ""
        self._num_on = self._num_back = 0
        """How often the time of a line is after, or before, that of the previous line with a time."""

    def read(self, raw: str) -> None:
        """Takes the next line."""
        raw = raw[:LONGEST_LINE]
        self.is_array |= _ARRAY.match(raw) is not None
        self._has_traceback |= raw.rstrip().endswith(_PYTHON[0])
        is_cut = len(raw) == LONGEST_LINE and len(_GLUED.findall(raw)) > 1
        self._is_joined |= is_cut or _JOINED.search(raw) is not None
        if found := _TIME.search(raw):
            before, self._time = self._time, found[0]
            self._num_on += "" < before < self._time
            self._num_back += self._time < before

    @property
    def is_newest_first(self) -> bool:
        """Whether the times of the lines go back."""
        return self._num_back >= _LEAST_BACK and self._num_on < self._num_back * _MOST_ON

    @property
    def is_joined(self) -> bool:
        """Whether the lines of tracebacks are joined, and no traceback is in lines of its own."""
        return self._is_joined and not self._has_traceback


def read_line(raw: str) -> Iterator[LogLine]:
    """Parses a line. Yields several lines for a JSON record with a traceback, or if line breaks were lost."""
    raw = raw[:LONGEST_LINE].rstrip("\r\n")
    if raw[:1].isdigit() or raw[:1] == '"':
        raw = _CSV.sub(_message_of_row, raw, count=1) if _CSV.match(raw) else raw
    if "[" in raw:
        raw = _COLOUR.sub("", raw)
    if raw.startswith("{"):
        yield from _read_json(raw)
        return
    yield from _read_text(raw)


def _message_of_row(row: re.Match[str]) -> str:
    is_quoted, text = row[1], row[2]
    return text.removesuffix('"').replace('""', '"') if is_quoted else text


def _read_text(raw: str) -> Iterator[LogLine]:
    starts: list[int] = []
    if len(raw) > _HEAD:
        starts = [found.start() for found in _GLUED.finditer(raw)]
    for start, end in pairwise([0, *starts[1:], len(raw)]):
        yield from _read_record(raw[start:end])


def _read_record(raw: str) -> Iterator[LogLine]:
    process, level, place, text = "", "", "", raw
    end = 0
    for found in _PROCESS.finditer(raw, 0, _HEAD):
        if end and found.start() > end:
            break
        process, end = found[1], found.end()
    text = raw[end:]
    if record := _RECORD.search(text, 0, _HEAD):
        level, place, text = record[1], record[2].rpartition("/")[2], text[record.end() :]
    elif own := _OWN_RECORD.search(text, 0, _HEAD):
        level, process, text = own[1], own[2], text[own.end() :]
    elif uvicorn := _UVICORN.match(text):
        level, text = uvicorn[1], text[uvicorn.end() :]
    else:
        level, text = _without_prefixes(text)
        if text.startswith("{"):
            yield from _read_json(text)
            return
        if found_place := _PLACE.match(text):
            place, text = found_place[1].rpartition("/")[2], text[found_place.end() :]
        elif uvicorn := _UVICORN.match(text):
            level, text = uvicorn[1], text[uvicorn.end() :]
    text = text.removesuffix(" across cluster]").partition(" [repeated ")[0] if "[repeated " in text else text
    if text.endswith("│"):
        text = text[:-1].rstrip()
    yield LogLine(process, level, place, text.rstrip())


def _without_prefixes(text: str) -> tuple[str, str]:
    """The level in the prefixes, which may be empty, and the text after the prefixes."""
    if text.startswith(_PYTHON):
        return "", text
    if glog := _GLOG.search(text, 0, _HEAD):
        return _GLOG_LEVELS[glog[1]], text[glog.end() :]
    for _ in range(_MOST_PREFIXES):
        if text.startswith(_PYTHON) or _PLACE.match(text):
            break
        found = next((found for prefix in _PREFIXES if (found := prefix.match(text))), None)
        if found is None:
            break
        text = text[found.end() :]
    return "", text


def _read_json(raw: str) -> Iterator[LogLine]:
    """Yields the lines of a JSON record. The lines of its message come before those of its traceback."""
    try:
        record = read_json(raw)
    except ValueError:
        record = None
    if not isinstance(record, dict):
        yield LogLine("", "", "", raw)
        return
    inner = record.get("jsonPayload")
    record = {**record, **inner} if isinstance(inner, dict) else record
    process, level = _process_of(record), _first_text(record, _JSON_LEVELS).upper()
    level = level if level in _LEVELS else ""
    message = _first_text(record, _JSON_MESSAGES)
    is_printed = any(line.text.startswith(_PYTHON) for line in _read_text(message.partition("\n")[0]))
    if is_printed or (level in _HARMLESS and record.keys().isdisjoint(_JSON_LOGGERS)):
        level = ""  # of a program that carries logs
    left = _MOST_JSON_LINES
    for text in (message, _first_text(record, _JSON_TRACES)):
        for line in text.splitlines()[:left]:
            left -= 1
            for inner in _read_text(line):
                yield LogLine(inner.process or process, inner.level or level, inner.place, inner.text)


def _first_text(record: dict[str, Any], names: tuple[str, ...]) -> str:
    for name in names:
        value = record.get(name)
        if isinstance(value, str):
            return value
    return ""


def _process_of(record: dict[str, Any]) -> str:
    name = _first_text(record, ("role", "process", "processName", "process_name"))
    pid = record.get("pid")
    return f"{name} pid={pid}" if name and isinstance(pid, int) else ""


def read_lines(stream: BinaryIO) -> Iterator[str]:
    r"""The lines of a stream, without their ends. Long lines may lack what `read_line` leaves out.

    The states of a progress bar end with \r. Each becomes a line that still ends with \r, so that
    `CauseFinder` can count the file's lines. NULs, which a log has where it was truncated, are left out.
    """
    decoder, rest = None, ""
    while chunk := stream.read(_CHUNK):
        if decoder is None:
            is_utf16 = chunk.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))  # PowerShell writes it
            decoder = codecs.getincrementaldecoder("utf-16" if is_utf16 else "utf-8-sig")("replace")
        text = (rest + decoder.decode(chunk).replace("\0", "")).replace("\r\n", "\n")
        *lines, rest = text.replace("\r", "\r\n").split("\n")
        rest = rest[:LONGEST_LINE]
        yield from lines
    if rest:
        yield rest
