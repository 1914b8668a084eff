"""Fetches compiled models from locations, and adds this machine's models. Runs in helper processes."""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

from base.wording import one_line
from startup.compiled_models import local
from startup.compiled_models.archive import ArchiveError, DamagedError, read_record, unpack, write_archive
from startup.compiled_models.location import MOST_EXAMINED, Location, StoredArchive, open_location
from startup.compiled_models.reasons import has_changed_sources
from startup.compiled_models.record import ARCHIVE_SUFFIX, ArchiveName, CompiledModel, FileFacts, Hardware
from startup.compiled_models.shared_files import add_kernels, add_learned, fetch_kernels, fetch_learned
from startup.compiled_models.sharing_process import LEARNED_FETCHED, AddJob, FetchJob, SharingReport
from startup.processes.helper import Send

_MOST_BYTES: Final = 16 << 30
"""The most bytes of an archive, both packed and unpacked."""
_MOST_READ: Final = 10
"""The most records, newest first, that are read to explain why no archive fits."""
_LONGEST_READ_S: Final = 5.0


def share(job: FetchJob | AddJob, send: Send) -> None:
    """Runs a job, and sends its report. A fetch sends further events (`fetch`)."""
    send(fetch(job, send) if isinstance(job, FetchJob) else add(job))


def fetch(job: FetchJob, send: Callable[[object], None] = lambda _: None) -> SharingReport:
    """Installs files and compiled models that fit and that this machine does not have.

    Problems of a location are reported, not raised. `send` gets `LEARNED_FETCHED`, and before an archive of a
    compiled model is fetched, the seconds that its compilation took.
    """
    begin_s = time.monotonic()
    report = SharingReport()
    for address in job.locations:
        with _noted(report, address):
            fetch_learned(open_location(address), job, report)
    send(LEARNED_FETCHED)
    for address in job.locations:
        with _noted(report, address):
            fetch_kernels(open_location(address), job, report)
    for address in job.locations if job.is_for_model else ():
        with _noted(report, address):
            _fetch(open_location(address), job, report, send)
    report.took_s = time.monotonic() - begin_s
    return report


def add(job: AddJob) -> SharingReport:
    """Writes this machine's records and missing archives. Problems of the location are only reported."""
    begin_s = time.monotonic()
    report = SharingReport()
    for record in job.records:
        with _noted(report, job.location or record.key):
            sources = local.files_of(record, job.more.get(record.key, ()), job.began_s)
            if not record.files:
                files = {name: FileFacts.of(path) for name, path in sources.items()}
                local.save_record(record.with_files(files))
            if job.location is not None:
                location = open_location(job.location)
                stored = _find(location, record)
                if stored is None or (
                    not record.files and stored.modified_s < job.began_s and _must_be_replaced(location, stored)
                ):
                    _add(location, record, sources, stored, report)
                else:
                    report.archives.append(stored.name)
    for add_files in (add_kernels, add_learned) if job.location is not None else ():
        with _noted(report, str(job.location)):
            add_files(open_location(str(job.location)), job, report)
    report.took_s = time.monotonic() - begin_s
    return report


def _fetch(location: Location, job: FetchJob, report: SharingReport, note_compile_s: Callable[[float], None]) -> None:
    family = CompiledModel.family_of(job.model, job.versions, Hardware.present())
    listed = location.list(family, most=MOST_EXAMINED)
    chosen = _choose(listed, job)
    present = set()
    for archive, name in chosen:
        if (name.key, name.ranks) in present:
            continue
        with _noted(report, f"{location.address}/{archive.name}"):
            record = _read(location, archive, job)
            if not local.is_installed(record):
                if local.is_excluded(record) or has_changed_sources(record):
                    continue
                note_compile_s(record.compile_s)
                _install(location, archive, report)
            present.add((name.key, name.ranks))
    if job.digest and not chosen:
        others = [archive for archive in location.list() if ArchiveName.parse(archive.name) is not None]
        _read_others(location, listed or others, job)


def _choose(listed: Sequence[StoredArchive], job: FetchJob) -> list[tuple[StoredArchive, ArchiveName]]:
    """The archives with the job's digest. If the job has no digest, archives of starts with equal flags.

    If there are no such archives, the archives with the flags of the newest start.
    """
    parsed = [(each, ArchiveName.parse(each.name)) for each in listed]
    named = [(each, name) for each, name in parsed if name is not None]
    if job.digest:
        return [item for item in named if item[1].has_digest(job.digest)]
    same = [item for item in named if item[1].start_id == job.start_id]
    return same or [item for item in named if item[1].start_id == named[0][1].start_id]


def _read(location: Location, archive: StoredArchive, job: FetchJob) -> CompiledModel:
    """Reads a record and saves it for the launcher. Raises ArchiveError."""
    if archive.size > _MOST_BYTES:
        raise ArchiveError(f"it has {archive.size} bytes, more than {_MOST_BYTES}")
    with location.open(archive.name) as file:
        record = read_record(file, CompiledModel)
    if record.archive_name != archive.name:
        raise ArchiveError("its record belongs to another archive")
    if record.model == job.model:
        local.save_record(record, Path(job.found_folder))
    return record


def _read_others(location: Location, listed: Sequence[StoredArchive], job: FetchJob) -> None:
    """Saves the records of archives that do not fit, so that the launcher can explain why."""
    begin_s = time.monotonic()
    for archive in listed[:_MOST_READ]:
        if time.monotonic() - begin_s < _LONGEST_READ_S:
            with suppress(ArchiveError, OSError):
                _read(location, archive, job)


def _install(location: Location, archive: StoredArchive, report: SharingReport) -> None:
    try:
        with _unpacked(location, archive) as (files, full):
            report.problems += local.install(files)
            local.save_record(full)
    except DamagedError as err:
        location.remove(archive.name)
        raise ArchiveError(f"it is removed, because it is damaged: {err}") from err
    location.touch(archive.name)
    report.num_models += 1
    report.num_bytes += archive.size


@contextmanager
def _unpacked(location: Location, archive: StoredArchive) -> Iterator[tuple[Path, CompiledModel]]:
    """Yields a folder with the files of the archive, and the record."""
    with local.incoming() as folder:
        files = folder / "files"
        files.mkdir(mode=0o700)
        with location.open(archive.name) as file:
            full = unpack(file, files, CompiledModel, max_bytes=_MOST_BYTES)
        yield files, full


def _find(location: Location, record: CompiledModel) -> StoredArchive | None:
    """Finds an archive of the same compiled code, even if it comes from a start with other flags."""
    code = f"-{'-'.join(record.name[3:])}{ARCHIVE_SUFFIX}"
    listed = location.list(record.family, most=MOST_EXAMINED)
    return next((archive for archive in listed if archive.name.endswith(code)), None)


def _must_be_replaced(location: Location, archive: StoredArchive) -> bool:
    """Whether the archive must be replaced, because it is damaged or starts with its model have failed."""
    try:
        with _unpacked(location, archive) as (_, record):
            return local.is_excluded(record)
    except ArchiveError:
        return True


def _add(
    location: Location,
    record: CompiledModel,
    sources: Mapping[str, Path],
    replaced: StoredArchive | None,
    report: SharingReport,
) -> None:
    with local.incoming() as folder:
        archive = folder / "archive"
        full = write_archive(archive, record, sources)
        if full.num_bytes > _MOST_BYTES:
            raise ValueError(f"its files have {full.num_bytes} bytes, more than {_MOST_BYTES}")
        if replaced is not None:
            location.remove(replaced.name)
        if location.add(full.archive_name, archive):
            report.num_models += 1
            report.num_bytes += archive.stat().st_size
        report.archives.append(full.archive_name)


@contextmanager
def _noted(report: SharingReport, what: str) -> Iterator[None]:
    """Adds an error in the block to the report's problems, because another location may have the model."""
    try:
        yield
    except Exception as err:  # noqa: BLE001 - content that others have written must not end this process
        text = one_line(err)
        report.problems.append(text if what in text else f"{what} is not used: {text}")
