"""Collects in one pass what the lines of one start show. `first_cause.py` decides which of it counts."""

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Final, Literal

from startup.errors import CODE_LINE
from startup.reports.crash.phases import SERVING
from vllm_cli.explain.cause import Cause, KnownCause
from vllm_cli.explain.failures import HARMLESS_LEVELS, FailureReader, is_place_of_requests
from vllm_cli.explain.log_line import LogLine
from vllm_cli.explain.phase import FATAL_ERROR, KV_CACHE_SIZE, phase_of_message
from vllm_cli.explain.table import BY_CODE, ERROR_IN_CODE, LISTS, NOT_IN_LOG, START_NOT_FINISHED, known_in

Kind = Literal["end", "hint", "error", "reference"]
"""How a line shows a cause: it reports a process's end, explains an exception, or is an error message. A
reference is a line of any form. It counts only if a pasted excerpt has nothing better."""
_FACTS: Final = [KnownCause(fact, texts=tuple(texts)) for fact, texts in LISTS["facts"].items()]
_VERSION: Final = re.compile(r"(?:server version v?|LLM engine \(v|█  version |vLLM Version *: *)(\d[\w.]{1,20})")
_BROKEN_IMPORT: Final = re.compile(
    r"ailed to import from (?:vllm\.)?(\w{2,60}) with (\w{0,30}Error\(.{1,600}\))"
    r"|^(torch_xla) import failed: (.{1,600})"
)
"""Matches the warning about a module that cannot be imported, and the reason."""
_PLATFORM: Final = re.compile(r"(?:detected platform |Platform plugin |/torch/(?=xpu/))(\w+)")
_PROGRESS: Final = re.compile(r"\d%")
"""Matches a progress bar."""
_MOST_IMPORTS: Final = 20
_MOST_PHASES: Final = 1_000

_CODE: Final = re.compile(
    r"(?:class|def|raise|return|from|except|elif|if|for|with|assert|async) .*[:(,]$|@|frame #\d|Exception raised from "
)
"""Matches source code in tracebacks without indentation, and C++ frames, which report no event."""
_COMPLAINT: Final = re.compile(
    r".{0,80}?(?:\b(?:(?i:error)|[Ff]atal|[Ff]ailed to|[Cc]ould ?n[o']t|No module named|command not found)|^assert)\b"
)
"""Matches an error message of any program."""
_QUOTED_ERROR: Final = re.compile(r"\b[A-Z]\w{1,60}(?:Error|Exception): .{1,400}")
_HARMLESS: Final = KnownCause("", texts=tuple(LISTS["harmless"]))
_OWN_ERROR: Final = "Error: "
"""The beginning of the last line of `vllm-cli` after a failed start, and of a digest."""
_OWN_CAUSE: Final = re.compile("Cause: (?:possibly )?")


@dataclass
class Evidence:
    """What the lines of one start of the server show."""

    exceptions: FailureReader = field(default_factory=FailureReader)
    matches: dict[tuple[Kind, KnownCause], Cause] = field(default_factory=dict)
    """For each kind of line and known cause, the first line."""
    complaint: Cause | None = None
    """A line that looks like an error message."""
    own_error: Cause | None = None
    """The last error message of `vllm-cli` itself."""
    wait: Cause | None = None
    """A line that reports that a process still waits. None once a process has gone on."""
    last: Cause | None = None
    """The last line of a start in which it reports what it does."""
    facts: set[str] = field(default_factory=set)
    version: str = ""
    """The version of vLLM, such as `0.11.0`. Empty if it is unknown."""
    broken_imports: dict[str, Cause] = field(default_factory=dict)
    """Module that cannot be imported, such as `_C` of vLLM -> the warning about it."""
    platform: str = ""
    """The kind of device, such as `rocm`. Empty if it is unknown."""
    engine: str = ""
    """The label of the first process whose KV cache had room. `EARLIER`: an earlier run's still serves."""
    has_label: bool = False
    """Whether a line has the label of a process, as those of vLLM and the embedded engine have."""
    has_record: bool = False
    """Whether a line has the form of vLLM's, in which other programs that import vLLM may also log."""
    is_excerpt: bool = True
    """Whether the log may be only a pasted excerpt, because it is short."""
    _announced: tuple[Kind, KnownCause] | None = None
    """The line whose message goes on in the next line."""
    _phases: dict[str, str] = field(default_factory=dict)
    """Label of a process -> its latest phase. The empty label has the latest phase of the log."""

    def read(self, line: LogLine, number: int, *, is_excerpt: bool) -> None:
        """Takes the line with this number. `is_excerpt`: whether the log may be only an excerpt."""
        self.is_excerpt = is_excerpt
        if found := _BROKEN_IMPORT.search(line.text):
            self._note_broken_import(line, found[1] or found[3], found[2] or found[4], number)
        if _HARMLESS.matches(line.text):
            return
        if not line.text.strip():
            self.exceptions.read(line, number, "")
            return
        if self._announced and not line.level:
            match = self.matches[self._announced]
            self.matches[self._announced] = match._replace(text=f"{match.text} {line.text.strip()}")
        self._announced = None
        phase = self._follow_phase(line)
        self._note_facts(line)
        self.exceptions.read(line, number, phase)
        is_code = self.exceptions.is_source or _CODE.match(line.text)
        if not is_code and not self.exceptions.is_in_ignored:
            has_place = self.exceptions.has_place  # the frames decide on causes of a place
            placed = [each for each in known_in(line.text) if not (each.raised_in and has_place)]
            known = sorted((each for each in placed if each.fits_place(())), key=lambda each: each.is_general)
            first = known[0] if known else None
            match = Cause(line.process, phase, line.text, first, number)
            self._add(match, line, known, is_excerpt=is_excerpt)

    @property
    def is_foreign(self) -> bool:
        """Whether another program than a server of vLLM or the embedded engine wrote the log."""
        programs = self.exceptions.programs
        is_other = self.facts & {"llama.cpp", "sglang"} or "client" in programs
        is_unknown = "other" in programs and "vllm" not in programs and not self.has_record
        return not self.has_label and "server" not in self.facts and bool(is_other or is_unknown)

    @property
    def has_served(self) -> bool:
        """Whether the server was ready, or answered requests."""
        return "ready" in self.facts or self.exceptions.has_request

    @property
    def has_started(self) -> bool:
        """Whether the server served, or whether a program without a server has its engine."""
        return self.has_served or ("engine up" in self.facts and "server" not in self.facts)

    def of_kind(self, kind: Kind) -> list[Cause]:
        """The first lines of this kind for each cause, in the order of the log."""
        return [match for (each, _), match in self.matches.items() if each == kind]

    def _follow_phase(self, line: LogLine) -> str:
        if begun := phase_of_message(line.text):
            self._phases[""] = begun
            if line.process in self._phases or len(self._phases) < _MOST_PHASES:
                self._phases[line.process] = begun
            if KV_CACHE_SIZE in line.text:
                self.engine = self.engine or line.process
            if begun == SERVING and FATAL_ERROR not in line.text:
                self.facts.add("ready")
        if "ready" in self.facts:
            return SERVING
        return self._phases.get(line.process) or self._phases.get("", "")

    def _note_facts(self, line: LogLine) -> None:
        text = line.text
        self.has_label |= line.process != ""
        self.has_record |= "" not in (line.level, line.place)
        self.facts.update(fact.name for fact in _FACTS if fact.matches(text))
        self.version = found[1] if (found := _VERSION.search(text)) else self.version
        self.platform = found[1] if (found := _PLATFORM.search(text)) else self.platform

    def broken_import_of(self, error: str, known: KnownCause) -> Cause | None:
        """The warning about a module that this error follows from.

        The error names the module or its operators, such as `_C` in `'_OpNamespace' '_C' object has no`. Or
        the error is about a device, whose package the module is.
        """
        is_of_device = known.name in ("no-device", "no-platform")
        for name, warning in self.broken_imports.items():
            is_named = re.search(rf"(?<!\w)(?<!torch\.){name}(?:_\w+)?\b", error)
            if name in LISTS["packages of devices"] if is_of_device else is_named:
                return warning
        return None

    def _note_broken_import(self, line: LogLine, module: str, error: str, number: int) -> None:
        telling = [each for each in known_in(error) if not each.is_general]
        if telling and len(self.broken_imports) < _MOST_IMPORTS:
            self.broken_imports.setdefault(module, Cause(line.process, "", error, telling[0], number))

    def _add(self, match: Cause, line: LogLine, known: list[KnownCause], *, is_excerpt: bool) -> None:
        of = {each.where: each for each in reversed(known)}
        wait = of.get("wait")
        if wait or line.level == "INFO":
            self.wait = match._replace(known=wait) if wait else None
        if match.phase and (line.level == "INFO" or _PROGRESS.search(line.text)):
            self.last = match._replace(known=START_NOT_FINISHED)
        is_of_server = not is_place_of_requests(line.place)
        for kind in ("hint", "end"):
            known_of_kind = of.get(kind)
            if known_of_kind and (line.level not in HARMLESS_LEVELS or "logged" in known_of_kind.tags):
                self._keep(kind, known_of_kind, match)
        if line.level in ("ERROR", "CRITICAL") and is_of_server and "end" not in of:
            self._keep("error", match.known, match)
        if is_excerpt and line.level not in HARMLESS_LEVELS and is_of_server:
            named = next((each for each in known if each is not NOT_IN_LOG), None)
            self._keep("reference", named, match)
            self._find_complaint(line, match)
        self._find_own_error(line, known, match)

    def _keep(self, kind: Kind, known: KnownCause | None, match: Cause) -> None:
        if known is not None and (kind, known) not in self.matches:
            self.matches[kind, known] = match._replace(known=known)
            if " validation error" in match.text and kind in ("end", "reference"):
                self._announced = self._announced or (kind, known)

    def _find_complaint(self, line: LogLine, match: Cause) -> None:
        """Keeps the first error message, or a later message if it quotes an exception."""
        if self.complaint is None or not _QUOTED_ERROR.search(self.complaint.text):
            quoted = _QUOTED_ERROR.search(line.text)
            if quoted or (self.complaint is None and (line.level or _COMPLAINT.match(line.text))):
                is_of_code = quoted is not None and ERROR_IN_CODE.matches(quoted[0])
                self.complaint = match._replace(known=ERROR_IN_CODE if is_of_code else None)

    def _find_own_error(self, line: LogLine, known: list[KnownCause], match: Cause) -> None:
        if not line.level and line.text.startswith(_OWN_ERROR):
            self.own_error = match
        elif self.own_error and known and (begin := _OWN_CAUSE.match(line.text)):
            text = line.text[begin.end() :].removeprefix(f"{known[0].title}: ")
            self.own_error = match._replace(text=text)
        elif self.own_error:
            coded = BY_CODE.get(line.text.removeprefix(CODE_LINE))
            if coded and not coded.is_general:
                self.own_error = self.own_error._replace(known=coded)


def special(matches: list[Cause]) -> Iterator[Cause]:
    """The causes that are not general."""
    return (match for match in matches if match.known and not match.known.is_general)
