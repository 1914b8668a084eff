"""Decides whether a prefetch helps and how much fits into memory; runs in the helper process."""

from typing import NamedTuple

from server.machine.memory import read_memory
from startup.prefetch.job import Job
from startup.prefetch.survey import Survey

_RESIDENT_ENOUGH = 0.99
_MIN_BYTES = 64 << 20
_SHARE_THAT_HELPS = 0.5


class Decision(NamedTuple):
    """The part of a survey that is to be read."""

    survey: Survey
    is_off: bool
    reason: str | None = None
    """Why nothing or only a part is read."""


def decide(survey: Survey, job: Job) -> Decision:
    """Limits the survey to what fits into memory; unless forced, to nothing if less than half fits."""
    if reason := reason_to_skip(survey, is_forced=job.is_forced):
        return Decision(survey, is_off=True, reason=reason)
    available = available_bytes(job)
    if available is None:
        return Decision(survey, is_off=False)
    room = available - survey.resident_bytes - job.reserve_bytes
    due = survey.due_bytes
    if room >= due:
        return Decision(survey, is_off=False)
    reason = (
        f"{_mb(available)} of memory are available, of which {_mb(job.reserve_bytes)} are reserved for the engine: "
        f"{_mb(max(room, 0))} of {_mb(due)} fit"
    )
    least = 0 if job.is_forced else max(due * _SHARE_THAT_HELPS, _MIN_BYTES)
    limited = survey.limited_to(room)
    return Decision(limited, is_off=room < least or not limited.blocks, reason=reason)


def available_bytes(job: Job) -> int | None:
    """Available memory, including page cache of the files; None if the system does not report it."""
    if job.memory_bytes is not None:
        return job.memory_bytes
    state = read_memory()
    return state.available_bytes if state else None


def reason_to_skip(survey: Survey, *, is_forced: bool) -> str | None:
    """Why there is nothing to read; None if there is something."""
    if not survey.num_files:
        return "none of the files can be read"
    if survey.in_memory_bytes == survey.total_bytes:
        return "the files are on a file system in memory"
    if not survey.blocks:
        return "all files are resident"
    share = survey.resident_bytes / survey.total_bytes
    if share >= _RESIDENT_ENOUGH and not is_forced:
        return f"{share:.1%} of the bytes are resident"
    return None


def _mb(num_bytes: int) -> str:
    return f"{num_bytes / 1e6:.0f} MB"
