"""Finds the cgroups of this process, which have the limits of a container, a service or a job.

Standard library only, because the helper process of the prefetch also imports this module.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Final, Literal, NamedTuple

PROC: Final = Path("/proc")


class Cgroup(NamedTuple):
    """A cgroup that contains this process. The limits of all such cgroups apply together."""

    version: Literal[1, 2]
    folder: Path


class Mount(NamedTuple):
    """A mounted hierarchy of cgroups, or a part of one."""

    version: Literal[1, 2]
    options: frozenset[str]
    """The mount options. In version 1 of cgroups, they contain the names of the controllers."""
    root: str
    """The path of the cgroup that is mounted at `point`."""
    point: Path

    def folder_of(self, path: str) -> Path | None:
        """The folder of the cgroup `path`. None if the mounted part of the hierarchy does not contain it."""
        if self.root == "/":
            below = path.lstrip("/")
        elif path == self.root or path.startswith(f"{self.root}/"):
            below = path[len(self.root) :].lstrip("/")
        else:
            return None
        return self.point / below


def own_cgroups(controller: str, proc: Path = PROC) -> Iterator[Cgroup]:
    """Yields this process's cgroup of a controller such as `memory`, then each ancestor of this cgroup."""
    for version, mount_point, folder in _memberships(controller, proc):
        while True:
            yield Cgroup(version, folder)
            if folder == mount_point or folder == folder.parent:
                break
            folder = folder.parent


def read_lines(path: Path) -> list[str]:
    """The lines of a file. Empty if the file cannot be read."""
    try:
        return path.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return []


def mounts(proc: Path = PROC) -> Iterator[Mount]:
    """The mounted cgroup file systems."""
    for mount, (kind, _, options) in mount_fields(proc):
        root, point = mount[3:5]
        if kind == "cgroup2":
            yield Mount(2, frozenset(), root, Path(point))
        elif kind == "cgroup":
            yield Mount(1, frozenset(options.split(",")), root, Path(point))


def mount_fields(proc: Path = PROC) -> Iterator[tuple[list[str], list[str]]]:
    """Yields each mount of this process: its fields before and after the separator (proc(5), mountinfo)."""
    for mount, file_system in _split_lines(proc / "self" / "mountinfo", " - ", parts=2):
        yield mount.split(" "), file_system.split(" ", 2)


def _memberships(controller: str, proc: Path) -> Iterator[tuple[Literal[1, 2], Path, Path]]:
    """Yields version, mount point and this process's folder for each mounted hierarchy of the controller."""
    lines = _split_lines(proc / "self" / "cgroup", ":", parts=3)
    paths = {controllers: path for _, controllers, path in lines}
    for mount in mounts(proc):
        if mount.version == 2:
            path = paths.get("")
        elif controller in mount.options:
            path = next((p for names, p in paths.items() if controller in names.split(",")), None)
        else:
            continue
        if path is not None:
            yield mount.version, mount.point, mount.folder_of(path) or mount.point


def _split_lines(path: Path, separator: str, *, parts: int) -> list[list[str]]:
    fields = (line.split(separator, parts - 1) for line in read_lines(path))
    return [field for field in fields if len(field) == parts]
