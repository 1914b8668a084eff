"""The cgroups that contain this process, which hold the limits of a container, a service or a job.

Standard library only; the prefetch's helper process uses it too.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Final, Literal, NamedTuple

PROC: Final = Path("/proc")


class Cgroup(NamedTuple):
    """One cgroup; the limits of all of them apply."""

    version: Literal[1, 2]
    folder: Path


def own_cgroups(controller: str, proc: Path = PROC) -> Iterator[Cgroup]:
    """This process's cgroup of a controller such as `memory`, then each of its ancestors."""
    for version, mount_point, folder in _memberships(controller, proc):
        while True:
            yield Cgroup(version, folder)
            if folder == mount_point or folder == folder.parent:
                break
            folder = folder.parent


def read_lines(path: Path) -> list[str]:
    """A file's lines; none if it cannot be read."""
    try:
        return path.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return []


def _memberships(controller: str, proc: Path) -> Iterator[tuple[Literal[1, 2], Path, Path]]:
    """Each hierarchy of the controller with its mount point and this process's folder below it."""
    paths = {controllers: path for _, controllers, path in _split_lines(proc / "self" / "cgroup", ":", parts=3)}
    for mount, file_system in _split_lines(proc / "self" / "mountinfo", " - ", parts=2):
        kind, _, options = file_system.split(" ", 2)
        version: Literal[1, 2]
        if kind == "cgroup2":
            version, path = 2, paths.get("")
        elif kind == "cgroup" and controller in options.split(","):
            version, path = 1, next((p for names, p in paths.items() if controller in names.split(",")), None)
        else:
            continue
        root, mount_point = mount.split(" ")[3:5]
        if path is not None:
            yield version, Path(mount_point), Path(mount_point) / _below(path, root)


def _below(path: str, root: str) -> str:
    """The part of a cgroup's path below the mounted root; empty for a path outside of it."""
    if root == "/":
        return path.lstrip("/")
    return path[len(root) :].lstrip("/") if path == root or path.startswith(f"{root}/") else ""


def _split_lines(path: Path, separator: str, *, parts: int) -> list[list[str]]:
    fields = (line.split(separator, parts - 1) for line in read_lines(path))
    return [field for field in fields if len(field) == parts]
