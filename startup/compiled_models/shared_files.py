"""Fetches and adds files that any model's start can use: kernels, and what starts learn for later ones.

Each archive has the files that one start has added. So a location collects the kernels of all models, and two
machines that add at the same time lose nothing. Runs in helper processes.
"""

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from startup.compiled_models import local
from startup.compiled_models.archive import ArchiveError, DamagedError, read_record, unpack, write_archive
from startup.compiled_models.location import Location, StoredArchive
from startup.compiled_models.record import SharedFiles
from startup.compiled_models.sharing_process import AddJob, FetchJob, LearnedFiles, SharingReport
from startup.storage.caches import digest

_MOST_ARCHIVES: Final = 32
"""The most archives of a family, newest first, that are read."""
_MOST_BYTES: Final = 1 << 30
"""The most bytes of an archive, and of all archives of a family that are fetched."""
_KEPT_OF_KIND: Final = 2
"""The newest archives of learned files that stay for each kind of start."""


def fetch_learned(location: Location, job: FetchJob, report: SharingReport) -> None:
    """Installs the newest files that starts of this kind have learned, or else those of another kind."""
    if job.learned is None or report.num_learned:
        return
    listed = location.list(job.learned.family, most=_MOST_ARCHIVES)
    own = [archive for archive in listed if _is_of_kind(archive, job.learned)]
    for archive in (own or listed)[:1]:
        _install(location, archive, report)
        report.num_learned += 1


def fetch_kernels(location: Location, job: FetchJob, report: SharingReport) -> None:
    """Installs all kernels for this machine's hardware and versions that it does not have."""
    left_bytes = _MOST_BYTES
    for family in job.kernel_families:
        for archive in location.list(family, most=_MOST_ARCHIVES):
            left_bytes -= archive.size
            if left_bytes < 0:
                break
            with _one(report, location, archive):
                if local.has_all(_read(location, archive).files):
                    location.touch(archive.name)
                else:
                    _install(location, archive, report)
                    report.num_kernel_archives += 1


def add_kernels(location: Location, job: AddJob, report: SharingReport) -> None:
    """Adds the kernels that this start has compiled or used, and that the location lacks."""
    for number, family in enumerate(job.kernel_families):
        add_files(location, family, local.kernels_of(job.began_s, job.kernel_keys, of_triton=number == 0), report)


def add_files(location: Location, family: str, sources: Mapping[str, Path], report: SharingReport) -> None:
    """Adds an archive of the files that no archive of the family has. Raises OSError or ValueError.

    `sources`: name in the record -> file.
    """
    known = _known_names(location, family) if sources else set()
    missing = {name: path for name, path in sources.items() if name not in known}
    if missing:
        record = SharedFiles(family=family, name=digest(sorted(missing)), created_at=_now())
        _add(location, record, missing, report)


def add_learned(location: Location, job: AddJob, report: SharingReport) -> None:
    """Adds what this start has learned, or what the location lacks. Removes older archives of its kind."""
    learned = job.learned
    if learned is None or not learned.is_whole:
        return
    own = [archive for archive in location.list(learned.family) if _is_of_kind(archive, learned)]
    if own and not learned.has_news:
        report.archives.append(own[0].name)
        return
    record = SharedFiles(family=learned.family, name=f"{learned.kind}-{os.urandom(8).hex()}", created_at=_now())
    _add(location, record, local.learned_files(), report)
    for old in own[_KEPT_OF_KIND - 1 :]:
        with suppress(OSError):  # not everybody may remove objects of a store
            location.remove(old.name)


def _add(location: Location, record: SharedFiles, sources: Mapping[str, Path], report: SharingReport) -> None:
    with local.incoming() as folder:
        archive = folder / "archive"
        if write_archive(archive, record, sources).num_bytes > _MOST_BYTES:
            raise ValueError(f"the files of {record.archive_name} have more than {_MOST_BYTES} bytes")
        if location.add(record.archive_name, archive):
            report.num_others += 1
            report.num_bytes += archive.stat().st_size
        report.archives.append(record.archive_name)


def _known_names(location: Location, family: str) -> set[str]:
    """The files in the archives of a family. An archive that cannot be read has none."""
    names: set[str] = set()
    for archive in location.list(family, most=_MOST_ARCHIVES):
        with suppress(ArchiveError, OSError):
            names.update(_read(location, archive).files)
    return names


def _read(location: Location, archive: StoredArchive) -> SharedFiles:
    """Reads the record of an archive. Raises ArchiveError or OSError."""
    with location.open(archive.name) as file:
        record = read_record(file, SharedFiles)
    if record.archive_name != archive.name:
        raise ArchiveError("its record belongs to another archive")
    return record


def _install(location: Location, archive: StoredArchive, report: SharingReport) -> None:
    """Installs an archive's files. Removes an archive that is damaged. Raises ArchiveError or OSError."""
    try:
        with local.incoming() as folder:
            files = folder / "files"
            files.mkdir(mode=0o700)
            with location.open(archive.name) as file:
                record = unpack(file, files, SharedFiles, max_bytes=_MOST_BYTES)
            if record.archive_name != archive.name:
                raise ArchiveError("its record belongs to another archive")
            report.problems += local.install(files)
    except DamagedError as err:
        location.remove(archive.name)
        raise ArchiveError(f"it is removed, because it is damaged: {err}") from err
    location.touch(archive.name)
    report.num_bytes += archive.size


@contextmanager
def _one(report: SharingReport, location: Location, archive: StoredArchive) -> Iterator[None]:
    """Notes a problem with one archive, because the others may be usable."""
    try:
        yield
    except (ArchiveError, OSError) as err:
        report.problems.append(f"{location.address}/{archive.name} is not used: {err}")


def _is_of_kind(archive: StoredArchive, learned: LearnedFiles) -> bool:
    return archive.name.startswith(f"{learned.family}/{learned.kind}-")


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
