"""Checks open files, shared memory and disks. If they are too few, a start or a running server fails late."""

import mmap
import os
import resource
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from base.machine.files import nearest_existing, write_problem
from base.wording import format_bytes
from envs import foreign
from envs.registry import env
from startup.files.model.hub_settings import describe_variables
from startup.files.model.model_place import ModelPlace
from startup.session.preflight.report import Finding, error, warning
from startup.storage.caches import cache_folder

SHM: Final = Path("/dev/shm")

_MIN_NUM_FILES: Final = 96
"""Minimum limit of open files. A start opens about 40: libraries, sockets, event loop, and a few shards."""
_GOOD_NUM_FILES: Final = 1024
_MIN_SHM_BYTES: Final = 16 << 20
"""Minimum of shared memory. It is enough for multiprocessing's semaphores and OpenMP's registrations."""


def check_shared_memory(folder: Path = SHM) -> Iterator[Finding]:
    """Checks /dev/shm, which multiprocessing needs for its semaphores."""
    try:
        free = shutil.disk_usage(folder).free
    except OSError as err:
        yield error("shm", f"{folder} cannot be used: {err.strerror}. Mount a tmpfs there")
        return
    if not os.access(folder, os.W_OK):
        yield error("shm", f"{folder} cannot be written to: mount it writable")
    elif free < _MIN_SHM_BYTES:
        yield warning(
            "shm",
            f"{folder} has {format_bytes(free)} free, but needs {format_bytes(_MIN_SHM_BYTES)}. Empty it, or "
            "give the container --shm-size=1g (in Kubernetes, an emptyDir with `medium: Memory`)",
        )


def check_libraries() -> Iterator[Finding]:
    """Checks variables that can make an import fail, and whether torch may run kernels in its memory."""
    for name in ("PROMETHEUS_MULTIPROC_DIR", "prometheus_multiproc_dir"):
        folder = foreign.text_of(name)
        if foreign.is_set(name) and (problem := write_problem(folder or ".")):
            yield error("environment", f"{name}={folder} cannot be written to ({problem}): create it, or unset {name}")
    try:
        access = mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC
        mmap.mmap(-1, mmap.PAGESIZE, prot=access).close()
    except OSError as err:
        yield error(
            "executable_memory",
            f"no memory may be writable and executable ({err.strerror}), as torch's kernels need: leave "
            "MemoryDenyWriteExecute= out of the unit (PR_GET_MDWE shows it), or allow execmem in SELinux",
        )


def check_num_files() -> Iterator[Finding]:
    """Checks the limit of open files. Each client needs one open file."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY or soft >= _GOOD_NUM_FILES:
        return
    advice = f"raise it with `ulimit -n {_GOOD_NUM_FILES}`"
    if hard != resource.RLIM_INFINITY and hard < _GOOD_NUM_FILES:
        advice = (
            f"`ulimit -n` goes up to {hard} here. Raise that with LimitNOFILE= of the service, --ulimit nofile= of the "
            "container, or limits.conf"
        )
    if soft < _MIN_NUM_FILES:
        yield error("nofile", f"{soft} open files are allowed, a start needs {_MIN_NUM_FILES}: {advice}")
    else:
        yield warning("nofile", f"{soft} open files are allowed, and every client needs one: {advice}")


def check_disk(place: ModelPlace) -> Iterator[Finding]:
    """Checks that the cache folder can be written to. The download itself checks for free space."""
    folder = nearest_existing(place.cache_dir or env.HF_HUB_CACHE.get())
    if problem := write_problem(str(folder)):
        names = (env.HF_HUB_CACHE.name, env.HUGGINGFACE_HUB_CACHE.name, env.HF_HOME.name, env.XDG_CACHE_HOME.name)
        is_default = place.cache_dir in (None, env.HF_HUB_CACHE.get())
        given = next(filter(None, (describe_variables([name]) for name in names if is_default)), "")
        reason = f"{folder} cannot be written to ({problem})"
        remedy = f"correct {given}, or give --download-dir" if given else "give --download-dir"
        yield error("disk", f"{place.name} is to be downloaded, but {reason}: {remedy}")


def check_cache_folder() -> Iterator[Finding]:
    """Warns if records and caches cannot be written to VLLM_CACHE_ROOT. A start works without them."""
    folder = cache_folder()
    if problem := write_problem(str(nearest_existing(folder))):
        yield warning(
            "cache",
            f"nothing is cached between starts: {folder} cannot be written to ({problem}). "
            f"Mount a volume there, or set {env.VLLM_CACHE_ROOT.name}",
        )
