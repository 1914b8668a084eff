"""Runs groups of checks one after the other, for both engines."""

import time
from collections.abc import Callable, Iterable
from typing import TypeAlias

from envs.variable import EnvError
from startup.preflight.report import Finding, PreflightReport, warning

CheckGroup: TypeAlias = tuple[str, Callable[[], Iterable[Finding]]]
"""A group's name and the function that yields its findings."""


def run_checks(groups: Iterable[CheckGroup]) -> PreflightReport:
    """All findings, and how long each group took; never raises for a fault."""
    begin = time.perf_counter()
    findings: list[Finding] = []
    timings: list[tuple[str, float]] = []
    for name, check in groups:
        check_begin = time.perf_counter()
        findings += _run(name, check)
        timings.append((name, time.perf_counter() - check_begin))
    return PreflightReport(tuple(findings), time.perf_counter() - begin, tuple(timings))


def _run(name: str, check: Callable[[], Iterable[Finding]]) -> list[Finding]:
    """An error inside a check is a warning: it must not prevent a start that would work."""
    try:
        return list(check())
    except EnvError:
        return []  # reported by the check of the environment
    except Exception as err:  # noqa: BLE001 - the boundary of a check
        return [warning(name, f"this check could not be done: {type(err).__name__}: {err}")]
