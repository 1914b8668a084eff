"""Checks open files, shared memory and disks, which would otherwise end a start late or a running server."""

import json
import os
import resource
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from base.machine.files import write_problem
from base.wording import format_bytes
from envs.registry import env
from startup.caches import cache_folder
from startup.model.checkpoint_folder import find_weight_files
from startup.model.location import ModelPlace
from startup.preflight.report import Finding, error, warning

SHM: Final = Path("/dev/shm")

_MIN_NUM_FILES: Final = 96
"""Libraries, sockets between processes, the event loop and a few shards: a start opens about 40 files."""
_GOOD_NUM_FILES: Final = 1024
_MIN_SHM_BYTES: Final = 16 << 20
"""More than multiprocessing's semaphores and OpenMP's registrations need."""
_MIN_DISK_BYTES: Final = 1 << 30
"""Free space to require if the size of a download is unknown."""


def check_shared_memory(folder: Path = SHM) -> Iterator[Finding]:
    """Checks /dev/shm, which multiprocessing needs for its semaphores."""
    try:
        state = os.statvfs(folder)
    except OSError as err:
        yield error("shm", f"{folder} cannot be used: {err.strerror}; mount a tmpfs there")
        return
    free = state.f_bavail * state.f_frsize
    if not os.access(folder, os.W_OK):
        yield error("shm", f"{folder} cannot be written to: mount it writable")
    elif free < _MIN_SHM_BYTES:
        yield warning(
            "shm",
            f"{folder} has {format_bytes(free)} free, it should have {format_bytes(_MIN_SHM_BYTES)}: empty it, or "
            "give the container --shm-size=1g (Kubernetes: an emptyDir with medium: Memory)",
        )


def check_num_files() -> Iterator[Finding]:
    """Checks the number of open files; every client needs one."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY or soft >= _GOOD_NUM_FILES:
        return
    advice = f"raise it with `ulimit -n {_GOOD_NUM_FILES}`"
    if hard != resource.RLIM_INFINITY and hard < _GOOD_NUM_FILES:
        advice = (
            f"`ulimit -n` goes up to {hard} here; raise that with LimitNOFILE= of the service, --ulimit nofile= of the "
            "container, or limits.conf"
        )
    if soft < _MIN_NUM_FILES:
        yield error("nofile", f"{soft} open files are allowed, a start needs {_MIN_NUM_FILES}: {advice}")
    else:
        yield warning("nofile", f"{soft} open files are allowed, and every client needs one: {advice}")


def check_disk(place: ModelPlace) -> Iterator[Finding]:
    """Checks the cache folder before a download."""
    folder = nearest_existing(place.cache_dir or env.HF_HUB_CACHE.get())
    if problem := write_problem(str(folder)):
        reason = f"{folder} cannot be written to ({problem})"
        yield error("disk", f"{place.name} is to be downloaded, but {reason}: give --download-dir")
        return
    remaining = _remaining_bytes(place.folder) if place.folder else None
    if problem := _disk_problem(folder, remaining):
        yield error("disk", f"{place.name} is to be downloaded: {problem}")
    elif remaining is None and (free := free_bytes(folder)) < _MIN_DISK_BYTES:
        yield warning("disk", f"{place.name} is to be downloaded: {folder} has only {format_bytes(free)} free")


def check_cache_folder() -> Iterator[Finding]:
    """Warns if records and caches cannot be written below VLLM_CACHE_ROOT; a start works without them."""
    folder = cache_folder()
    if problem := write_problem(str(nearest_existing(folder))):
        yield warning(
            "cache",
            f"nothing is cached between starts: {folder} cannot be written to ({problem}); "
            f"mount a volume there, or set {env.VLLM_CACHE_ROOT.name}",
        )


def _disk_problem(folder: Path, needed_bytes: int | None) -> str | None:
    """Why this many bytes do not fit on the folder's disk; None if they do, or if the number is unknown."""
    folder = nearest_existing(folder)
    free = free_bytes(folder)
    if needed_bytes is None or needed_bytes <= free:
        return None
    missing = format_bytes(needed_bytes - free)
    return (
        f"{format_bytes(needed_bytes)} are needed and {format_bytes(free)} are free in {folder}: "
        f"free {missing} more, or give another --download-dir"
    )


def _remaining_bytes(snapshot: Path) -> int | None:
    """Bytes of the weights that are still to be downloaded, by the index; None if there is no index yet."""
    weights = find_weight_files(snapshot)
    if weights.index_path is None:
        return None
    try:
        total = json.loads(weights.index_path.read_text(encoding="utf-8"))["metadata"]["total_size"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    present = sum(path.stat().st_size for path in weights.present)
    return max(int(total) - present, 0)


def free_bytes(folder: Path) -> int:
    """Bytes that this user can write to the folder's disk."""
    state = os.statvfs(folder)
    return state.f_bavail * state.f_frsize


def nearest_existing(folder: Path) -> Path:
    """The folder, or its nearest parent that exists."""
    return next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())
