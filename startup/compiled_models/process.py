"""Runs a job of `startup.compiled_models.sharing` in a helper process, because the job may be slow."""

import math
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

from startup.compiled_models.record import CompiledModel
from startup.processes.helper import Helper, HelperEndedError

_LATE: Final = "fetching is given up after {:.0f} s: check that the location answers, and how fast"
_LEAST_LIMIT_S: Final = 30.0


@dataclass(frozen=True, kw_only=True)
class FetchJob:
    """The facts by which compiled models are chosen, and the locations from which they are fetched."""

    locations: tuple[str, ...]
    model: str
    versions: Mapping[str, str]
    start_id: str
    """The hash of the flags of this start. It chooses archives if `digest` is empty."""
    digest: str = ""
    found_folder: str
    """The folder for the records of all archives that were found."""


@dataclass(frozen=True, kw_only=True)
class AddJob:
    """The compiled models that this start has loaded or compiled, to be recorded and shared."""

    records: tuple[CompiledModel, ...]
    more: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """Key of a compiled model -> its further folders."""
    began_s: float
    """When this start began, in seconds since 1970. Older kernels do not belong to this start."""
    location: str | None


@dataclass
class SharingReport:
    """The result of a job."""

    num_models: int = 0
    num_bytes: int = 0
    took_s: float = 0.0
    problems: list[str] = field(default_factory=list)
    is_late: bool = False
    """Whether the helper was killed because it took too long."""


class SharingProcess:
    """The launcher's handle of a helper process. The helper ends with the thread that started it."""

    def __init__(self, job: FetchJob | AddJob) -> None:
        """Starts the helper. Raises OSError if it cannot be started."""
        self._limit_s = _LEAST_LIMIT_S if isinstance(job, FetchJob) else math.inf
        is_idle = isinstance(job, AddJob)  # the server answers requests meanwhile
        self._helper = Helper("compiled", "startup.compiled_models.sharing:share", job, is_idle=is_idle)

    def result(self) -> SharingReport:
        """Waits for the report. Kills a fetch that takes more than 30 s and longer than the compilation."""
        begin_s, limit_s = time.monotonic(), self._limit_s
        try:
            while (left_s := begin_s + limit_s - time.monotonic()) > 0:
                event = self._helper.receive(left_s)
                if isinstance(event, SharingReport):
                    return event
                if isinstance(event, float):
                    limit_s = max(limit_s, event)
        except HelperEndedError as err:
            return SharingReport(problems=[f"the helper process ended without a report: {err}"])
        finally:
            self._helper.close()
        return SharingReport(problems=[_LATE.format(limit_s)], is_late=True)

    def close(self) -> None:
        """Kills the helper if it runs. A thread that waits in `result` then returns."""
        self._helper.kill()
