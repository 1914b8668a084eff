"""The compiled model of one start: fetches and shares it, and reports why vLLM has compiled it.

A worker reports its configuration once it has its device (`startup.compiled_models.vllm_hooks`). The launcher
then fetches a model that fits. If none fits, it ends a start with `require`.
"""

import json
import logging
import os
import platform
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from functools import cached_property
from hashlib import sha256
from pathlib import Path
from typing import Any, Final

from base.wording import format_bytes
from envs.registry import env
from startup.compiled_models import local
from startup.compiled_models.exchange import CompiledEvent, Exchange
from startup.compiled_models.reasons import Reason, Wanted, explain, find_change
from startup.compiled_models.record import CompiledModel, Hardware, kernel_family, present_architectures
from startup.compiled_models.sharing_process import AddJob, FetchJob, LearnedFiles, SharingProcess, SharingReport
from startup.imports.distributions import contents_of
from startup.processes import group_signals
from startup.reports.timeline.history import installed_versions
from startup.session.start_state import StartState
from startup.settings.config import CompileCacheOption, flags_with_role
from startup.storage.caches import COMPILED, find_baked
from startup.vllm_arguments.installed import InstalledVllm
from startup.vllm_arguments.vllm_line import VllmLine

logger = logging.getLogger(__name__)

_PACKAGES: Final = ("torch", "triton", "flashinfer-python")
_COMPILERS: Final = (*_PACKAGES, "humming-kernels", "tilelang", "vllm")
"""The packages with the sources from which compilers other than Triton compile kernels."""
_MOST_FAILURES: Final = 2
_FAILED: Final = f"{_MOST_FAILURES} starts have failed after they had loaded the model that was compiled before"
_MOST_LOGGED: Final = 3
_POLLED_EVERY_S: Final = 0.05
_LONGEST_LEARNED_S: Final = 4.0
"""The longest wait for learned files, in seconds. Without them, imports take seconds more."""


def present_versions(vllm: InstalledVllm) -> dict[str, str]:
    """The versions of Python and of the packages that compile. A compiled model fits only these versions."""
    return {"python": platform.python_version(), "vllm": vllm.version, **installed_versions(_PACKAGES)}


class CompileCache:
    """The compiled model of one start. The launcher creates this object before it starts the forkserver."""

    def __init__(
        self,
        vllm: InstalledVllm,
        line: VllmLine,
        option: CompileCacheOption | None,
        folder: Path,
        learned: LearnedFiles,
    ) -> None:
        """In `folder`, the processes of the start exchange facts."""
        self._vllm = vllm
        self._model = line.model or ""
        self._start_id = _start_id(line)
        self._is_eager = line.is_eager
        self._learned = learned
        self._option = option or CompileCacheOption()
        self._exchange = Exchange(folder)
        self._records: list[CompiledModel] = []
        self._began_s = time.time()
        self._removed: dict[str, str] = {}
        """Key of a compiled model -> why the model was removed before this start could load it."""
        self._job: AddJob | None = None
        """The models to record and share after the start. None if there are no such models."""
        self._helper: SharingProcess | None = None
        self._problems: list[str] = []
        """The problems with locations that were logged. Each problem is logged only once."""
        self._is_late = False
        """Whether a fetch has taken so long that nothing more is fetched."""
        self._is_over = threading.Event()
        self._has_learned = threading.Event()
        """Set once the learned files are fetched, or cannot be."""
        self._shared_kernels: set[str] = set()
        """The kernels of Triton that this start had compiled when `share` was called."""
        self._is_given_up = False
        """Whether the server ends before `share` has ended, which is logged already."""
        self._is_shared = threading.Event()
        """Set once `share` has ended, or if there is nothing to share."""
        self._is_shared.set()
        self._thread: threading.Thread | None = None
        if self._option.is_required:
            forbid_compiling()

    def begin(self, state: StartState) -> None:
        """Starts a thread that fetches the compiled model. With `require`, the thread may end the start."""
        lock = self._exchange.hold_load(local.claim_keys(self._hardware), is_required=self._option.is_required)
        self._thread = group_signals.start_thread("compile-cache", self._run, state, lock)

    def wait_for_learned(self) -> None:
        """Called after `begin`. Waits at most 4 s for the learned files if there are none, before imports."""
        if not self._learned.is_known and self._places and not self._has_learned.wait(_LONGEST_LEARNED_S):
            logger.info("the start does not wait any longer for imports from %s", self._places[-1])

    def close(self) -> None:
        """Stops the thread and the helper process. Called at the end of the start."""
        self._is_over.set()
        if self._helper is not None:
            self._helper.close()
        if self._thread is not None:
            self._thread.join()

    def note_failure(self) -> None:
        """Called when the start has failed. Counts a failure of each model that was loaded, but not used."""
        unused = [event for event in self._exchange.events() if not event.is_used]
        suspected = {event.key for event in unused if event.loaded_s is not None}
        for record in self._records:
            if record.key in suspected:
                local.note_failure(record)

    def describe(self, state: StartState) -> None:
        """Called when vLLM is ready. Reports whether vLLM has loaded or compiled the model, and why."""
        self.close()
        events, early = self._exchange.events(), self._exchange.read_early()
        known = {record.key: record for record in self._records}
        if events:
            state.set_compiled_model(_describe(events, self._why_compiled(events, early), known))
        elif early is not None and early["compiles"]:
            reason = self._why_none_fits(self._wanted(early))
            fields = {"state": "compiled", "text": f"compiled, because {reason.text}"}
            state.set_compiled_model({**fields, **reason.to_fields()})
        for event in events:
            if event.loaded_s is not None and event.key in known:
                local.note_use(known[event.key])
        self._job = AddJob(
            records=tuple(self._to_add(events, known)),
            more={event.key: (event.more,) for event in events if event.more},
            began_s=self._began_s,
            location=self._option.location,
        )
        if self._is_needed(self._job):
            self._is_shared.clear()
            self._note_sharing(state, "adding")

    def share(self, state: StartState, *, has_news: bool, kernel_keys: Iterable[str]) -> None:
        """Records the models that vLLM has compiled. Adds to the location what later starts need.

        Called after `describe`. Takes seconds.

        Args:
            state: the state of the start, which says what was added.
            has_news: whether the start has learned something new.
            kernel_keys: the folders in Triton's cache of kernels that the start has used.
        """
        try:
            if self._job is not None and self._is_needed(self._job):
                self._job = replace(
                    self._job,
                    learned=self._learned._replace(has_news=has_news),
                    kernel_families=self._kernel_families,
                    kernel_keys=tuple(kernel_keys),
                )
                self._shared_kernels = self._kernels_now()
                report = SharingProcess(self._job).result()
                if not self._is_given_up:
                    _log(report, "added")
                self._note_sharing(state, "incomplete" if report.problems else "complete", report)
        except OSError as err:
            logger.warning("the compiled model is not recorded: %s", err)
            self._note_sharing(state, "incomplete", SharingReport(problems=[str(err)]))
        finally:
            self._is_shared.set()

    def finish_sharing(self, wait: Callable[[threading.Event], str]) -> None:
        """Called when the server stops. Waits until `share` has ended, or logs what was not added.

        `wait` waits for the event, and returns the reason if it has stopped waiting before.
        """
        if self._has_new_kernels():
            self._is_shared.clear()
            group_signals.start_thread("compile-cache", self._share_new_kernels)
        if self._is_owed:
            logger.info("the server ends once it has added what later starts need to %s", self._option.location)
            if (reason := wait(self._is_shared)) != "":
                self.give_up_sharing(reason)

    def give_up_sharing(self, reason: str) -> None:
        """Called when the server ends now. Logs that this start has added nothing to the location."""
        if self._is_owed:
            self._is_given_up = True
            logger.warning("compiled models: nothing was added to %s: %s", self._option.location, reason)

    def _has_new_kernels(self) -> bool:
        """Whether requests have made vLLM compile kernels since `share` has added those of the start."""
        if self._job is None or self._option.location is None or not self._is_shared.is_set():
            return False
        return self._kernels_now() > self._shared_kernels

    def _share_new_kernels(self) -> None:
        assert self._job is not None
        try:
            _log(SharingProcess(replace(self._job, records=(), learned=None)).result(), "added")
        except OSError as err:
            logger.warning("kernels were not added to %s: %s", self._option.location, err)
        finally:
            self._is_shared.set()

    def _kernels_now(self) -> set[str]:
        return set(local.kernels_of(self._began_s, of_triton=True)) if self._kernel_families else set()

    @property
    def _is_owed(self) -> bool:
        return self._option.location is not None and not self._is_shared.is_set()

    @staticmethod
    def _is_needed(job: AddJob) -> bool:
        return bool(job.records) or job.location is not None

    def _note_sharing(self, state: StartState, progress: str, report: SharingReport | None = None) -> None:
        if self._option.location is not None:
            report = report or SharingReport()
            fields = {"state": progress, "archives": report.archives, "problems": report.problems}
            state.set_sharing({"location": self._option.location, **fields})

    @cached_property
    def _places(self) -> tuple[str, ...]:
        """The locations from which this start fetches: the baked folder's, then the user's."""
        baked = find_baked().folder
        places: list[str] = []
        if baked is not None and (baked / COMPILED).is_dir():
            places.append(str(baked / COMPILED))
        if self._option.location:
            places.append(self._option.location)
        return tuple(places)

    @cached_property
    def _versions(self) -> dict[str, str]:
        return present_versions(self._vllm)

    @cached_property
    def _hardware(self) -> Hardware:
        return Hardware.present()

    @cached_property
    def _kernel_families(self) -> tuple[str, ...]:
        architectures = present_architectures() or self._hardware.gpus
        if not architectures:
            return ()
        return kernel_family(self._versions, self._hardware, architectures, contents_of(_COMPILERS))

    def _run(self, state: StartState, lock: int) -> None:
        try:
            self._prepare()
            while (early := self._exchange.read_early()) is None and not self._is_over.wait(_POLLED_EVERY_S):
                pass
            if early is not None and early["compiles"]:
                self._examine(state, early)
        except Exception as err:  # noqa: BLE001 - a start without `require` goes on after any error
            logger.warning("the cache of compiled models cannot be examined: %s", err)
            self._exchange.answer(f"the cache cannot be examined: {err}" if self._option.is_required else "")
        finally:
            self._has_learned.set()
            os.close(lock)

    def _prepare(self) -> None:
        """Removes models that must not be loaded. Fetches one if none was compiled for this command line."""
        self._records = [record for record in local.read_records() if record.model == self._model]
        # vLLM itself looks into its folders once the lock is released. What it must not load is gone by then.
        for record in self._records:
            if (reason := self._why_unusable(record)) is not None:
                local.remove(record)
                self._removed[record.key] = reason
        of_this_start = [record for record in self._records if record.start_id == self._start_id]
        is_wanted = not self._is_eager and not any(map(self._is_usable, of_this_start))
        if is_wanted or self._learned.is_first:
            self._fetch(with_files=True, is_for_model=is_wanted)
        self._has_learned.set()

    def _why_unusable(self, record: CompiledModel) -> str | None:
        """Why vLLM must not load a failed model, or None. Checks the files, because vLLM does not."""
        if not (failures := local.num_failures(record)):
            return None
        if (damaged := local.damaged_file(record)) is not None:
            return f"a file of the cache is damaged: {damaged}"
        if failures < _MOST_FAILURES:
            return None
        local.exclude(record)
        return _FAILED

    def _is_usable(self, record: CompiledModel) -> bool:
        fits = record.versions == self._versions and record.hardware == self._hardware
        return fits and record.key not in self._removed and local.is_installed(record)

    def _fetch(self, digest: str = "", *, with_files: bool = False, is_for_model: bool = True) -> None:
        """Fetches models in a helper process, and waits for the report of this process.

        `with_files`: also fetches kernels and, if this machine has none, learned files.
        """
        if not self._places or self._is_late or self._is_over.is_set():
            return
        job = FetchJob(
            locations=self._places,
            model=self._model,
            versions=self._versions,
            start_id=self._start_id,
            digest=digest,
            found_folder=str(self._exchange.found_folder),
            learned=self._learned if with_files and not self._learned.is_known else None,
            kernel_families=self._kernel_families if with_files else (),
            is_for_model=is_for_model,
        )
        self._helper = SharingProcess(job, self._has_learned.set)
        report = self._helper.result()
        if self._is_over.is_set():
            return
        self._is_late = report.is_late
        report.problems = [problem for problem in report.problems if problem not in self._problems]
        self._problems += report.problems
        _log(report, "fetched")
        known = {record.archive_name for record in self._records}
        found = local.read_records(self._exchange.found_folder)
        self._records += [record for record in found if record.archive_name not in known]

    def _wanted(self, early: Mapping[str, Any]) -> Wanted:
        return Wanted(
            digest=early["digest"], factors=early["factors"], versions=self._versions, hardware=self._hardware
        )

    def _examine(self, state: StartState, early: Mapping[str, Any]) -> None:
        """Fetches a model that fits if none is here. With `require`, refuses a start that would compile."""
        wanted = self._wanted(early)
        if not self._can_load(wanted):
            self._fetch(wanted.digest)
        # Only vLLM knows whether models fit that a start without this program has compiled.
        if not self._option.is_required or self._can_load(wanted) or local.unrecorded_keys():
            self._exchange.answer("")
            return
        reason = self._why_none_fits(wanted)
        text = f"refused, because {reason.text}"
        # The answer comes last, because the workers end the start as soon as they read it.
        state.set_compiled_model({"state": "refused", "text": text, **reason.to_fields()})
        self._exchange.answer(reason.text)

    def _can_load(self, wanted: Wanted) -> bool:
        return any(self._is_usable(record) and find_change(wanted, record) is None for record in self._records)

    def _why_none_fits(self, wanted: Wanted) -> Reason:
        fitting = next((record for record in self._records if find_change(wanted, record) is None), None)
        if fitting is None:
            return explain(wanted, self._records, local.vllm_root())
        excluded = _FAILED if local.is_excluded(fitting) else None
        gone = f"the files that were compiled at {fitting.created_at} are gone from {local.vllm_root()}"
        return Reason(self._removed.get(fitting.key) or excluded or gone)

    def _why_compiled(self, events: Iterable[CompiledEvent], early: Mapping[str, Any] | None) -> Reason | None:
        """Why vLLM has compiled a model. None if vLLM has loaded all models."""
        compiled = [event for event in events if event.loaded_s is None]
        if (error := next((event.error for event in compiled if event.error), "")) != "":
            return Reason(f"vLLM could not load the compiled model: {error}")
        if not compiled:
            return None
        return Reason("of an unknown reason") if early is None else self._why_none_fits(self._wanted(early))

    def _to_add(self, events: Iterable[CompiledEvent], known: Mapping[str, CompiledModel]) -> Iterable[CompiledModel]:
        """Yields the records of compiled models, and of loaded models that a location may no longer have."""
        by_key: dict[str, list[CompiledEvent]] = {}
        for event in events:
            by_key.setdefault(event.key, []).append(event)
        early = self._exchange.read_early() or {"digest": "", "factors": {}}
        for key, same in by_key.items():
            is_compiled = any(event.compiled_s is not None for event in same)
            if key in known and not is_compiled:
                if self._option.location:  # the location may have been emptied
                    yield known[key]
                continue
            yield CompiledModel(
                key=key,
                model=self._model,
                start_id=self._start_id,
                digest=same[0].digest,
                early_digest=early["digest"],
                factors=early["factors"],
                sources={name: digest for event in same for name, digest in event.sources.items()},
                versions=self._versions,
                hardware=self._hardware,
                ranks=tuple(sorted({event.rank for event in same})),
                compile_s=round(max(event.compiled_s or 0.0 for event in same), 3),
                created_at=datetime.now(UTC).isoformat(timespec="seconds"),
            )


def forbid_compiling() -> None:
    """Makes vLLM fail instead of compiling, even in cases that the launcher cannot forecast."""
    os.environ[env.VLLM_FORCE_AOT_LOAD.name] = "1"


def _start_id(line: VllmLine) -> str:
    """A hash of the flags without those for addresses, keys and TLS. It finds archives that may fit.

    vLLM's own hashes then show whether such an archive fits.
    """
    of_port = flags_with_role("address", "keys", "tls", "port", "both") | {"--served-model-name"}
    values = sorted((each.option, each.values) for each in line.options if each.name not in of_port)
    content = json.dumps([line.model, values])
    return sha256(content.encode()).hexdigest()[:16]


def _log(report: SharingReport, did: str) -> None:
    for problem in report.problems[:_MOST_LOGGED]:
        logger.warning("compiled models: %s", problem)
    if (num_more := len(report.problems) - _MOST_LOGGED) > 0:
        logger.warning("compiled models: %d more problems like these", num_more)
    size = format_bytes(report.num_bytes)
    if report.num_models:
        logger.info("compiled models: %s %d (%s) in %.1f s", did, report.num_models, size, report.took_s)
    elif report.num_learned or report.num_kernel_archives or report.num_others:
        logger.info("kernels and imports of earlier starts: %s %s in %.1f s", did, size, report.took_s)


def _describe(
    events: Sequence[CompiledEvent], reason: Reason | None, records: Mapping[str, CompiledModel]
) -> dict[str, Any]:
    """The facts about compiled models, as JSON values for the log, the report and the status page."""
    took_s = max(event.loaded_s or event.compiled_s or 0.0 for event in events)
    if reason is None:
        compiled = [records[event.key].compile_s for event in events if event.key in records]
        saved_s = max(max(compiled, default=0.0) - took_s, 0.0)
        text = f"loaded in {took_s:.1f} s"
        if saved_s:
            text += f", which saved {saved_s:.1f} s of compiling"
        return {"state": "loaded", "took_s": round(took_s, 3), "saved_s": round(saved_s, 3), "text": text}
    text = f"compiled in {took_s:.1f} s, because {reason.text}"
    return {"state": "compiled", "took_s": round(took_s, 3), "text": text, **reason.to_fields()}
