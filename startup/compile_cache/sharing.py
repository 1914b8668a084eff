"""Fetches compiled models that fit from locations, and adds those of this machine, in helper processes."""

import fcntl
import shutil
import signal
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

from startup.caches import cache_folder
from startup.compile_cache import local
from startup.compile_cache.archive import ArchiveError, read_record, unpack, write_archive
from startup.compile_cache.location import Location, open_location
from startup.compile_cache.messages import AddJob, FetchJob, SharingReport
from startup.compile_cache.record import CompiledModel, FileFacts, Hardware, kind_of

_MOST_BYTES: Final = 16 << 30
"""Of an archive, and of all its files."""
_MOST_READ: Final = 50
"""Archives whose records are read: the newest."""
_LEAST_LIMIT_S: Final = 30.0
_INCOMING: Final = "incoming-"
_LEFT_S: Final = 60.0
"""A folder of this age is locked, unless its helper was killed."""


def fetch(job: FetchJob) -> SharingReport:
    """Installs what fits and is not here yet; never raises because of a location."""
    begin_s = time.monotonic()
    report = SharingReport()
    kind = kind_of(job.model, job.versions, Hardware.present())
    for address in job.locations:
        try:
            location = open_location(address)
            found = dict(_read(location, kind, job, report))
            if not found:  # others tell why nothing fits
                list(_read(location, "", job, report))
            for name, record in _choose(found, job):
                if not local.is_installed(record):
                    _install(location, name, record, report)
        except OSError as err:
            report.problems.append(f"{address}: {err}" if address not in str(err) else str(err))
    report.took_s = time.monotonic() - begin_s
    return report


def add(job: AddJob) -> SharingReport:
    """Writes this machine's records, and adds what the location lacks; never raises because of a location."""
    begin_s = time.monotonic()
    report = SharingReport()
    for record in job.records:
        sources = local.files_of(record, job.more.get(record.key, ()))
        try:
            if job.location is None:
                local.save_record(record.with_files({name: FileFacts.of(path) for name, path in sources.items()}))
                continue
            with _incoming() as folder:
                archive = folder / "archive"
                full = write_archive(archive, record, sources)
                local.save_record(full)
                if open_location(job.location).add(record.archive_name, archive):
                    report.num_models += 1
                    report.num_bytes += archive.stat().st_size
            local.note_shared(full, job.location)
        except (OSError, ValueError) as err:
            report.problems.append(str(err))
    report.took_s = time.monotonic() - begin_s
    return report


def _read(location: Location, kind: str, job: FetchJob, report: SharingReport) -> Iterator[tuple[str, CompiledModel]]:
    """The records of this model by the names of their archives, the newest first; saves them."""
    for stored in location.list(kind)[:_MOST_READ]:
        try:
            if stored.size > _MOST_BYTES:
                raise ArchiveError(f"it has {stored.size} bytes")
            with location.open(stored.name) as file:
                record = read_record(file)
            if record.archive_name != stored.name:
                raise ArchiveError("its record belongs to another archive")
        except ArchiveError as err:
            if kind:  # of other kinds, another release may read it
                _remove_damaged(location, stored.name, err, report)
            continue
        if record.model == job.model:
            local.save_record(record, Path(job.found_folder))
            yield stored.name, record


def _choose(found: Mapping[str, CompiledModel], job: FetchJob) -> list[tuple[str, CompiledModel]]:
    """With the digest; else of starts with the same flags, or of the newest start."""
    if job.digest:
        return [item for item in found.items() if job.digest in (item[1].digest, item[1].early_digest)]
    newest = max(found.values(), key=lambda record: record.created_at, default=None)
    same = [item for item in found.items() if item[1].start_id == job.start_id]
    return same or [item for item in found.items() if newest is not None and item[1].start_id == newest.start_id]


def _install(location: Location, name: str, record: CompiledModel, report: SharingReport) -> None:
    """Ends this process where fetching takes longer than compiling would."""
    signal.alarm(int(max(_LEAST_LIMIT_S, record.compile_s)))
    try:
        with _incoming() as folder:
            files = folder / "files"
            files.mkdir(mode=0o700)
            with location.open_whole(name, folder) as file:
                full = unpack(file, files, max_bytes=_MOST_BYTES)
            local.install(files)
            local.save_record(full)
    except ArchiveError as err:
        _remove_damaged(location, name, err, report)
        return
    finally:
        signal.alarm(0)
    location.touch(name)
    local.note_shared(full, location.address)
    report.num_models += 1
    report.num_bytes += full.num_bytes


def _remove_damaged(location: Location, name: str, err: ArchiveError, report: SharingReport) -> None:
    """Else no other machine could add a whole one."""
    became = "is removed"
    try:
        location.remove(name)
    except OSError:
        became = "is not used"
    report.problems.append(f"{location.address}/{name} {became}, because it is damaged: {err}")


@contextmanager
def _incoming() -> Iterator[Path]:
    """A new folder on the file system of vLLM's caches; those of killed helpers are removed."""
    parent = cache_folder()
    parent.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix=_INCOMING, dir=parent))
    oldest_s = folder.stat().st_mtime - _LEFT_S
    _remove_left([path for path in parent.glob(f"{_INCOMING}*") if path.stat().st_mtime < oldest_s])
    try:
        with (folder / "lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _remove_left(folders: Sequence[Path]) -> None:
    """The kernel has released the lock of a helper that was killed."""
    for folder in folders:
        with suppress(OSError), (folder / "lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(folder, ignore_errors=True)
