"""Runs a job of `startup.compiled_models.sharing` in a helper process, because the job may be slow."""

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Final, NamedTuple

from startup.compiled_models.record import CompiledModel
from startup.processes.helper import Helper, HelperEndedError

_LATE: Final = "fetching is given up after {:.0f} s: check that the location answers, and how fast"
_LEAST_LIMIT_S: Final = 30.0


class LearnedFiles(NamedTuple):
    """What starts of one kind learn for later ones: bytecode, modules to preload, facts about vLLM."""

    family: str
    """Names vLLM, the interpreter and the installed packages (`record.start_family`)."""
    kind: str
    """Names the kind of start, which decides what it imports."""
    is_known: bool
    """Whether this machine has these files, of its own or in the baked folder."""
    is_first: bool
    """Whether no start of this kind has succeeded with this cache folder."""
    is_whole: bool = True
    """Whether the cache folder has all of them. In a baked image, it has only what the baked folder lacks."""
    has_news: bool = False
    """Whether this start has learned something that it did not know before."""


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
    learned: LearnedFiles | None = None
    """Which learned files to fetch. None if the machine has them."""
    kernel_families: tuple[str, ...] = ()
    """The families of kernels to fetch (`record.kernel_family`)."""
    is_for_model: bool = True
    """Whether to fetch compiled models."""


@dataclass(frozen=True, kw_only=True)
class AddJob:
    """The compiled models that this start has loaded or compiled, to be recorded and shared."""

    records: tuple[CompiledModel, ...]
    more: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """Key of a compiled model -> its further folders."""
    began_s: float
    """When this start began, in seconds since 1970. Older kernels do not belong to this start."""
    location: str | None
    learned: LearnedFiles | None = None
    kernel_families: tuple[str, ...] = ()
    """The families of the kernels to add: Triton's and the other compilers'. Empty if there are none."""
    kernel_keys: tuple[str, ...] = ()
    """The folders in Triton's cache of kernels that the start has used."""


@dataclass
class SharingReport:
    """The result of a job."""

    num_models: int = 0
    num_learned: int = 0
    """The number of fetched archives of learned files."""
    num_kernel_archives: int = 0
    num_others: int = 0
    """The number of added archives of kernels or learned files."""
    num_bytes: int = 0
    archives: list[str] = field(default_factory=list)
    """The archives that the location has of this start, whoever has added them."""
    took_s: float = 0.0
    problems: list[str] = field(default_factory=list)
    is_late: bool = False
    """Whether the helper was killed because it took too long."""


LEARNED_FETCHED: Final = "learned files fetched"
"""The event of a fetch once it has installed the files that imports use."""


class SharingProcess:
    """The launcher's handle of a helper process. The helper ends with the thread that started it."""

    def __init__(self, job: FetchJob | AddJob, on_learned_fetched: Callable[[], None] = lambda: None) -> None:
        """Starts the helper. Raises OSError if it cannot be started."""
        self._on_learned_fetched = on_learned_fetched
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
                if event == LEARNED_FETCHED:
                    self._on_learned_fetched()
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
