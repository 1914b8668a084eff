"""Evicts, prefetches and records pages on the file systems of containers, in a mount namespace.

Needs root. Each program works on one file of 3 MiB, which is locked in memory before the second prefetch.
"""

import json
from pathlib import Path
from typing import Any, Final

import pytest

from base.machine.page_cache import memory_devices
from tests.support.cli import run_python
from tests.support.containers import as_user, own_mounts
from tests.support.marks import require_tool, thorough_but_for

SIZE: Final = 3 << 20
_OVERLAY: Final = "mount -t overlay overlay -o lowerdir=low,upperdir=upper,workdir=work mnt"
FILE_SYSTEMS: Final = {
    "lower": f"cp file low; {_OVERLAY}",
    "upper": f"{_OVERLAY}; cp file mnt",
    "copied-up": f"cp file low; {_OVERLAY}; printf x | dd of=mnt/file conv=notrunc status=none",
    "of-two-layers": "cp file low; mount -t overlay overlay -o lowerdir=low:upper mnt",
    "of-fuse": "cp file upper; bindfs -o kernel_cache upper low; mount -t overlay overlay -o lowerdir=low:work mnt",
    "fuse-that-keeps-pages": "cp file low; bindfs -o kernel_cache low mnt",
    "fuse": "cp file low; bindfs low mnt",
    "tmpfs": "mount -t tmpfs tmpfs mnt; cp file mnt",
    "of-tmpfs": "mount -t tmpfs tmpfs low; cp file low; mount -t overlay overlay -o lowerdir=low:upper mnt",
}
"""Name -> shell commands that mount `mnt` with `file` in it. `of-X` is an overlay on X."""

WORK: Final = """
import json, mmap, os, sys
from contextlib import ExitStack
from pathlib import Path
from startup.files.prefetch.prefetch_process import start_prefetch
from base.machine.page_cache import ResidencyProbe
from tests.support.page_cache import held
from vllm_cli.bake.bake import used_pages

def evict():
    with path.open("rb") as file:
        for _ in range(2):
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
            os.sync()  # fsync(2) on an overlay does not write back its lower layers
    with ResidencyProbe(str(path)) as probe:
        return probe.resident_bytes()

def prefetch(mode):
    with start_prefetch([path], mode, memory_bytes=1 << 50) as handle:
        return {"helper": handle.pid is not None} | handle.result(60)._asdict()

path = Path(sys.argv[1])
found = {"stayed_bytes": evict(), "first": prefetch("on")}
with held(path):
    found["second"] = prefetch("auto")
with path.open("rb") as file, mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ) as mapped:
    mapped.madvise(mmap.MADV_RANDOM)
    mapped[2 << 20]
    used = [parts for parts in used_pages(os.getpid()) if parts.path == str(path)]
found["used"] = [[parts.size, parts.ranges] for parts in used]
print(json.dumps(found))
"""


def found_on(name: str, folder: Path, uid: int | None = None) -> Any:
    """Runs the program with the file on this file system. Returns the program's findings."""
    if folder.stat().st_dev in memory_devices():
        pytest.skip("the folder for temporary files is in memory")
    commands = FILE_SYSTEMS[name]
    if "bindfs" in commands:
        require_tool("bindfs")
    (folder / "file").write_bytes(bytes(SIZE))
    launcher = own_mounts(f"mkdir -p low upper work mnt; {commands}", folder)
    if launcher is None:
        pytest.skip("this user may not mount these file systems")
    user = () if uid is None else as_user(uid, uid, folder / "file")
    if user is None:
        pytest.skip("no program of another user can be started")
    done = run_python(WORK, folder / "mnt" / "file", launcher=(*launcher, *user))
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.thorough
@pytest.mark.parametrize("uid", [None, 4711], ids=["owner", "another-user"])
@pytest.mark.parametrize("name", list(FILE_SYSTEMS)[:6])
def test_evicted_files_are_read_and_resident_ones_are_not(name, uid, tmp_path):
    found = found_on(name, tmp_path, uid)
    first, second = found["first"], found["second"]
    assert found["stayed_bytes"] == 0
    assert (first["state"], first["reason"], first["resident_bytes"], first["read_bytes"]) == ("done", None, 0, SIZE)
    assert (second["state"], second["reason"]) == ("off", "all files are resident")
    assert second["helper"] == (uid is not None), "the owner's survey is cheap"


@pytest.mark.parametrize("uid", thorough_but_for([None, 4711], None), ids=["owner", "another-user"])
def test_nothing_is_read_where_each_open_drops_pages(uid, tmp_path):
    found = found_on("fuse", tmp_path, uid)
    reason = "3 MB are on a file system that drops a file's pages at each open"
    for report in (found["first"], found["second"]):
        assert (report["state"], report["reason"], report["read_bytes"]) == ("off", reason, 0)


@pytest.mark.parametrize("name", thorough_but_for(["tmpfs", "of-tmpfs"]))
def test_files_in_memory_stay_and_are_not_read(name, tmp_path):
    found = found_on(name, tmp_path)
    assert found["stayed_bytes"] == SIZE
    assert (found["first"]["state"], found["second"]["state"]) == ("off", "off")


@pytest.mark.thorough
@pytest.mark.parametrize("name", ["lower", "copied-up"])
def test_a_record_of_used_pages_names_files_by_their_paths_on_the_overlay(name, tmp_path):
    ((size, ((offset, length),)),) = found_on(name, tmp_path)["used"]
    assert size == SIZE
    assert offset <= 2 << 20 < offset + length
