"""Checks which parts of a baked folder still apply to the installed packages, the hardware and the model."""

import importlib.util
import json
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final, NamedTuple

from startup.caches.baked import BYTECODE, CACHE, PAGES, untrusted_file, why_not_trusted
from startup.caches.folders import OWN
from startup.caches.manifest import Hardware, Interpreter, Manifest, stamps_of
from startup.imports.import_file import why_not
from startup.imports.scan_cache import scan_key
from startup.prefetch.pages import read_pages
from startup.timeline.subject import installed_versions
from startup.vllm.launch.baked_caches import FOR_ANY_HARDWARE

HISTORY: Final = "start history"
PROFILES: Final = "preload profile"
SCANS: Final = "package scan"
IMPORTS: Final = "import file"
INSPECTIONS: Final = "model inspection"
COMPILED: Final = "compile caches"
BYTECODES: Final = "bytecode"
READ_PAGES: Final = "pages to prefetch"
NO_START: Final = "a start with a request"

_OWN_PARTS: Final = {
    HISTORY: "history.jsonl",
    PROFILES: "preload/*.json",
    SCANS: "imports/*.json",
    IMPORTS: "imports/*.code",
}
"""Patterns of files."""


class Part(NamedTuple):
    """One part of a baked folder."""

    name: str
    paths: tuple[Path, ...]

    @property
    def files(self) -> list[Path]:
        """Its files; none if it is missing."""
        found = (file for path in self.paths for file in ((path,) if path.is_file() else sorted(path.rglob("*"))))
        return [file for file in found if file.is_file()]

    @property
    def num_bytes(self) -> int:
        """The files' sizes."""
        return sum(file.stat().st_size for file in self.files)


def parts_of(folder: Path) -> Iterator[Part]:
    """All parts, also those that are missing."""
    cache = folder / CACHE
    for name, pattern in _OWN_PARTS.items():
        yield Part(name, tuple(sorted((cache / OWN).glob(pattern))))
    yield Part(INSPECTIONS, tuple(cache / name for name in FOR_ANY_HARDWARE))
    others = cache.iterdir() if cache.is_dir() else ()
    yield Part(COMPILED, tuple(sorted(path for path in others if path.name not in (OWN, *FOR_ANY_HARDWARE))))
    yield Part(BYTECODES, (folder / BYTECODE,))
    yield Part(READ_PAGES, (folder / PAGES,))


_HEADER_BYTES: Final = 16
"""Length of the header of a `.pyc` file: magic number, flags, time and size of the source."""


@dataclass(frozen=True)
class PartCheck:
    """The result for one part."""

    name: str
    applies: bool
    reason: str = ""
    """Why it does not apply."""
    num_files: int = 0
    num_bytes: int = 0


@dataclass(frozen=True)
class BakeCheck:
    """The result for a folder."""

    folder: str
    manifest: Manifest
    parts: tuple[PartCheck, ...]

    @property
    def is_whole(self) -> bool:
        """Whether every part applies."""
        return all(part.applies for part in self.parts)

    def to_json(self) -> str:
        """The output of `--json`."""
        fields: dict[str, Any] = {"folder": self.folder, "applies": self.is_whole, **asdict(self.manifest)}
        return json.dumps({**fields, "parts": [asdict(part) for part in self.parts]}, indent=2)


def check_baked(folder: Path) -> BakeCheck:
    """Raises OSError or ValueError if the folder has no readable manifest."""
    manifest = Manifest.read(folder)
    here = _Here(manifest)
    user = os.geteuid()
    problem = why_not_trusted(folder.resolve(), user) or untrusted_file(folder, user)
    checks = [PartCheck("permissions", problem is None, problem or ""), here.check_model()]
    for part in parts_of(folder):
        if part.files:
            reason = here.why_not(part)
            checks.append(PartCheck(part.name, not reason, reason, len(part.files), part.num_bytes))
    return BakeCheck(str(folder), manifest, tuple(checks))


class _Here:
    """This machine, compared with the one that the folder was baked on."""

    def __init__(self, manifest: Manifest) -> None:
        self._manifest = manifest
        self._checks: Mapping[str, Callable[[Part], str]] = {
            HISTORY: lambda part: self._packages,
            PROFILES: lambda part: self._packages,
            SCANS: self._check_scans,
            IMPORTS: self._check_import_file,
            INSPECTIONS: lambda part: self._packages,
            COMPILED: lambda part: self._packages or self._hardware,
            BYTECODES: self._check_bytecode,
            READ_PAGES: self._check_pages,
        }

    def why_not(self, part: Part) -> str:
        """Why the part does not apply; empty if it does."""
        return self._interpreter or self._checks[part.name](part)

    def check_model(self) -> PartCheck:
        """Whether the model's files are those of the build."""
        manifest = self._manifest
        if not manifest.model:
            return PartCheck("model", applies=True)
        try:
            found = stamps_of(Path(manifest.model))
        except OSError as err:
            return PartCheck("model", False, f"{manifest.model} cannot be read: {err.strerror}")
        reason = next(iter(_differences(manifest.model_files, found)), "")
        return PartCheck("model", not reason, reason, len(found), sum(size for size, _ in found.values()))

    @property
    def _interpreter(self) -> str:
        baked, here = self._manifest.interpreter, Interpreter.running()
        return "" if baked == here else f"baked for {_describe(baked)}, this is {_describe(here)}"

    @property
    def _packages(self) -> str:
        baked = self._manifest.packages
        here = installed_versions(baked)
        changed = (name for name in baked if here.get(name) != baked[name])
        return next((f"{name} was {baked[name]}, is {here.get(name, 'not installed')}" for name in changed), "")

    @property
    def _hardware(self) -> str:
        baked, here = self._manifest.hardware, Hardware.present()
        if baked.cpu != here.cpu:
            return "the processor has other instruction sets"
        if baked.gpus != here.gpus:
            return f"the GPUs were {', '.join(baked.gpus) or 'none'}, are {', '.join(here.gpus) or 'none'}"
        return ""

    def _check_scans(self, part: Part) -> str:
        for path in part.files:
            if json.loads(path.read_bytes())["key"] != scan_key():
                return "a package was installed or removed since"
        return ""

    def _check_import_file(self, part: Part) -> str:
        return next(filter(None, map(why_not, part.files)), "")

    def _check_pages(self, part: Part) -> str:
        (record,) = part.paths
        num_all, num_same = len(json.loads(record.read_bytes())), len(read_pages(str(record)))
        return f"{num_all - num_same} of {num_all} files are gone or have other sizes" if num_same < num_all else ""

    def _check_bytecode(self, part: Part) -> str:
        (root,) = part.paths
        stale = [path for path in part.files if not _is_current(path, root)]
        return f"{len(stale)} of {len(part.files)} modules have changed, such as {stale[0].stem}" if stale else ""


def _differences(baked: Mapping[str, tuple[int, int]], here: Mapping[str, tuple[int, int]]) -> Iterator[str]:
    for name in sorted({*baked, *here}):
        if name not in here:
            yield f"{name} is gone"
        elif name not in baked:
            yield f"{name} is new"
        elif baked[name] != here[name]:
            yield f"{name} has changed"


def _describe(interpreter: Interpreter) -> str:
    return f"{interpreter.version} in {interpreter.prefix}"


def _is_current(compiled: Path, root: Path) -> bool:
    """Whether Python would use the file: its header has the magic number, and time and size of the source."""
    name, _, _ = compiled.name.rpartition(f".{compiled.name.split('.')[-2]}.")
    source = Path("/", *compiled.relative_to(root).parent.parts, f"{name}.py")
    try:
        state = source.stat()
    except OSError:
        return False
    with compiled.open("rb") as file:
        header = file.read(_HEADER_BYTES)
    wanted = (importlib.util.MAGIC_NUMBER, int(state.st_mtime) & 0xFFFFFFFF, state.st_size & 0xFFFFFFFF)
    return (header[:4], int.from_bytes(header[8:12], "little"), int.from_bytes(header[12:], "little")) == wanted
