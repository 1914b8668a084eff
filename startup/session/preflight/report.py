"""The preflight's findings, as text and as JSON. Also runs the groups of checks of both engines."""

import json
import logging
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Any, Final, Literal, NamedTuple, TypeAlias

from envs.redaction import without_login
from envs.variable import EnvError
from startup.errors import USAGE_CAUSE, CommandLineError, StartupError, code_of
from startup.settings.config import PreflightMode

logger = logging.getLogger(__name__)

Severity = Literal["error", "warning", "unchecked", "info"]

USAGE: Final = "usage"
"""Id of the check that finds words which the command line does not accept."""

CHOICE: Final = "choice"
"""Id of the check that says which of several files is read. A start logs its information, too."""

FLAGS: Final = "flags"
"""Id of the checks of flags that belong together, and of vLLM's flags as a whole."""

_SCHEMA: Final = 1
_MAX_SHOWN: Final = 5
"""Maximum number of faults that an error shows."""
_CAUSES: Final = {
    USAGE: USAGE_CAUSE,
    "api_keys": "keys-or-certificates",
    "disk": "disk-full",
    "imports": "package-missing",
    "model": "model-not-found",
    "nofile": "too-many-open-files",
    "package": "package-missing",
    "shm": "shm-too-small",
    "tls": "keys-or-certificates",
}
"""A check's id -> the cause of its errors. Errors of all other checks have the cause `preflight`."""
_ORDER: Final[tuple[Severity, ...]] = ("error", "warning", "unchecked", "info")
_LOGGED: Final = (CHOICE, FLAGS)
"""Ids of the checks whose findings a start logs although they are no faults."""


class Finding(NamedTuple):
    """A fault, with the wrong value and the fix, or a piece of information."""

    check: str
    """The check's stable id, such as `port` or `weights`."""
    severity: Severity
    """`error`: the start would fail. `warning`: the start may fail or be slow. `unchecked`: a check was not
    done, so its subject may have any fault. `info`: there is no fault."""
    message: str
    cause: str = ""
    """The name of an error's cause. Empty if the check determines the cause."""

    @property
    def cause_name(self) -> str:
        return self.cause or _CAUSES.get(self.check, "preflight")

    def to_fields(self) -> dict[str, str]:
        """The finding as JSON values. Only an error has a code."""
        fields = {"check": self.check, "severity": self.severity, "message": self.message}
        return fields | ({"code": code_of(self.cause_name)} if self.severity == "error" else {})


CheckGroup: TypeAlias = tuple[str, Callable[[], Iterable[Finding]]]
"""The group's name and the function that yields its findings."""


def error(check: str, message: str, cause: str = "") -> Finding:
    """A finding with which the start would fail."""
    return Finding(check, "error", without_login(message), cause)


def warning(check: str, message: str) -> Finding:
    """A finding with which the start may fail later or behave unexpectedly."""
    return Finding(check, "warning", without_login(message))


def unchecked(check: str, message: str) -> Finding:
    """A check that was not done, and the reason, so that the report does not read as if it had passed."""
    return Finding(check, "unchecked", without_login(message))


def info(check: str, message: str) -> Finding:
    """A finding that is not a fault."""
    return Finding(check, "info", without_login(message))


@dataclass(frozen=True)
class PreflightReport:
    """All findings of one run."""

    findings: tuple[Finding, ...]
    duration_s: float
    checks: tuple[tuple[str, float], ...] = ()
    """The groups of checks that ran, with their durations in seconds."""
    way_round: str = ""
    """Advice how the user can start in spite of the errors, shown after the errors."""

    @property
    def errors(self) -> tuple[Finding, ...]:
        """Faults that must be fixed before a start."""
        return self._of("error")

    @property
    def warnings(self) -> tuple[Finding, ...]:
        """Faults that may cause problems later."""
        return self._of("warning")

    @property
    def unchecked(self) -> tuple[Finding, ...]:
        """Checks that were not done."""
        return self._of("unchecked")

    @property
    def has_usage_error(self) -> bool:
        """Whether the command line has words that are not accepted."""
        return any(finding.check == USAGE for finding in self.errors)

    def without(self, findings: Iterable[Finding]) -> "PreflightReport":
        """The report without findings that the user knows already."""
        known = frozenset(findings)
        return replace(self, findings=tuple(finding for finding in self.findings if finding not in known))

    def as_error(self) -> StartupError | None:
        """One exception with the first few errors and the first error's cause. None without errors."""
        messages = [finding.message for finding in self.errors]
        if not messages:
            return None
        kind = CommandLineError if self.has_usage_error else StartupError
        shown = messages if len(messages) <= _MAX_SHOWN else messages[: _MAX_SHOWN - 1]
        num_hidden = len(messages) - len(shown)
        head = f"{len(messages)} faults:" if len(messages) > 1 else ""
        rest = f"and {num_hidden} more: --preflight-only shows all" if num_hidden else ""
        cause = USAGE_CAUSE if self.has_usage_error else self.errors[0].cause_name
        lines = filter(None, (head, *shown, rest, self.way_round))
        return kind("\n  ".join(lines), cause=cause)

    def apply(self, mode: PreflightMode) -> None:
        """Raises the errors in one exception. With the mode `warn`, or without errors, logs the findings."""
        for finding in (*self.unchecked, *self._of("info")):
            if finding.check in _LOGGED:
                logger.info("%s", finding.message)
        if mode != "warn" and (err := self.as_error()) is not None:
            raise err
        for finding in (*self.errors, *self.warnings):
            logger.warning("%s", finding.message)

    def to_json(self) -> str:
        """The report as a JSON object. `schema` gets a new number when the meaning of a field changes."""
        content: dict[str, Any] = {
            "schema": _SCHEMA,
            "ok": not self.errors,
            "is_complete": not self.unchecked,
            "duration_s": round(self.duration_s, 4),
            "findings": [finding.to_fields() for finding in self.findings],
            "checks": [{"name": name, "duration_s": round(seconds, 4)} for name, seconds in self.checks],
        }
        return json.dumps(content, indent=2)

    def to_text(self) -> str:
        """The report as text, with a line for each finding and a summary."""
        counts = [describe_count(len(self.errors), "error"), describe_count(len(self.warnings), "warning")]
        if self.unchecked:
            counts.append(f"{len(self.unchecked)} not checked")
        return "\n".join([*self.lines(), f"Preflight: {', '.join(counts)} after {self.duration_s:.2f} s"])

    def lines(self) -> list[str]:
        """A line for each finding, errors first."""
        shown = [finding for severity in _ORDER for finding in self._of(severity)]
        kinds = _width(finding.severity for finding in shown)
        checks = _width(finding.check for finding in shown)
        return [f"{each.severity:<{kinds}}{each.check:<{checks}}{each.message}" for each in shown]

    def _of(self, severity: Severity) -> tuple[Finding, ...]:
        return tuple(finding for finding in self.findings if finding.severity == severity)


def _width(names: Iterable[str]) -> int:
    """The width of a column with these names, with two blanks behind the longest."""
    return max(map(len, names), default=0) + 2


def run_checks(groups: Iterable[CheckGroup]) -> PreflightReport:
    """Runs the checks. Returns all findings and the duration of each group. Never raises for a fault."""
    begin = time.perf_counter()
    findings: list[Finding] = []
    invalid: list[tuple[str, EnvError]] = []
    timings: list[tuple[str, float]] = []
    for name, check in groups:
        check_begin = time.perf_counter()
        try:
            findings += _run_group(name, check)
        except EnvError as err:
            invalid.append((name, err))
        timings.append((name, time.perf_counter() - check_begin))
    reported = "\n".join(finding.message for finding in findings)
    unreported = ((name, str(err)) for name, err in invalid if str(err) not in reported)
    findings += [unchecked(name, f"this check could not be done: {problem}") for name, problem in unreported]
    return PreflightReport(tuple(findings), time.perf_counter() - begin, tuple(timings))


def _run_group(name: str, check: Callable[[], Iterable[Finding]]) -> list[Finding]:
    """Runs a group. Raises EnvError for a faulty variable, which the environment's check usually reports.

    Any other exception in a check is no error, because the start may work all the same.
    """
    findings: list[Finding] = []
    try:
        findings.extend(check())
    except EnvError:
        raise
    except Exception as err:  # noqa: BLE001 - the boundary of a check
        findings.append(unchecked(name, f"this check could not be done: {type(err).__name__}: {err}"))
    return findings


def describe_count(number: int, noun: str) -> str:
    """A count in words, such as `2 errors` or `no warnings`."""
    return f"{number or 'no'} {noun}{'' if number == 1 else 's'}"
