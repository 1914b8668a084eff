"""The models in the hub's cache, and those from object stores: size, completeness and last use."""

import os
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final, NamedTuple
from urllib.parse import unquote

from startup.model.checkpoint_folder import ADAPTER_CONFIG
from startup.model.location import FolderListing, dangling_links, place_problem, unfinished_marker
from startup.model.wanted_files import Role, WantedFiles

_PREFIX: Final = "models--"
_ADDRESS_PART: Final = "%3A%2F%2F"
"""`://` in the folder of a model from an object store."""


class CachedModel(NamedTuple):
    """One revision of a repository."""

    name: str
    commit: str
    revisions: tuple[str, ...]
    """Branches and tags that point to it."""
    folder: Path
    num_bytes: int
    """Size of its files on disk; files that several revisions share count for each."""
    num_files: int
    last_used_s: float
    """When a file was last read, in seconds since 1970; kernels note it once a day, and not on every disk."""
    problem: str | None
    """Why a start would download more of it; None if it is complete."""

    def to_json(self) -> dict[str, Any]:
        """The fields of `vllm-cli prefetch --list --json`."""
        last_used = datetime.fromtimestamp(self.last_used_s, UTC).isoformat(timespec="seconds")
        fields = self._asdict() | {"folder": str(self.folder), "revisions": list(self.revisions)}
        del fields["last_used_s"]
        return {**fields, "is_complete": self.problem is None, "last_used": last_used}


def list_cached_models(cache_dir: Path) -> list[CachedModel]:
    """All revisions of all models in the cache, by name; empty if the folder cannot be read."""
    return sorted(_find(cache_dir), key=lambda model: (model.name, -model.last_used_s))


def _find(cache_dir: Path) -> Iterator[CachedModel]:
    for repository in (*cache_dir.glob(f"{_PREFIX}*"), *cache_dir.glob(f"*{_ADDRESS_PART}*")):
        revisions = _revisions_of(repository)
        for snapshot in (repository / "snapshots").glob("*"):
            if snapshot.is_dir():
                names = tuple(sorted(revisions.get(snapshot.name, ())))
                yield _describe(repository, snapshot, names)


def _describe(repository: Path, snapshot: Path, revisions: tuple[str, ...]) -> CachedModel:
    states = [state for path in _files(snapshot) if (state := _state(path)) is not None]
    return CachedModel(
        name=_name_of(repository.name),
        commit=snapshot.name,
        revisions=revisions,
        folder=snapshot,
        num_bytes=sum(state.st_blocks * 512 for state in states),
        num_files=len(states),
        last_used_s=max((max(state.st_atime, state.st_mtime) for state in states), default=0.0),
        problem=_problem(snapshot),
    )


def _name_of(folder: str) -> str:
    """The inverse of `repository_name`."""
    return folder.removeprefix(_PREFIX).replace("--", "/") if folder.startswith(_PREFIX) else unquote(folder)


def _problem(snapshot: Path) -> str | None:
    if unfinished_marker(snapshot).exists():
        return "the download is not finished"
    if links := dangling_links(snapshot):
        return f"the content of {links[0]} is missing"
    role: Role = "adapter" if ADAPTER_CONFIG in FolderListing(snapshot).names else "model"
    problem = place_problem(WantedFiles(role=role, engine="vllm"), snapshot)
    return problem.removeprefix(f"{snapshot} ") if problem is not None else None


def _revisions_of(repository: Path) -> dict[str, list[str]]:
    """Commits and the branches and tags that point to them."""
    found: dict[str, list[str]] = {}
    refs = repository / "refs"
    for ref in _files(refs):
        try:
            commit = ref.read_text(encoding="ascii").strip()
        except (OSError, UnicodeDecodeError):
            continue
        found.setdefault(commit, []).append(str(ref.relative_to(refs)))
    return found


def _files(folder: Path) -> Iterator[Path]:
    for parent, _, names in os.walk(folder):
        yield from (Path(parent, name) for name in names)


def _state(path: Path) -> os.stat_result | None:
    try:
        return path.stat()
    except OSError:
        return None
