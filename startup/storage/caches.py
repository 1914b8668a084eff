"""The folders kept between starts: the user's cache folder, and the baked folder of `vllm-cli bake`.

A file is looked up in the cache folder first, then in the baked folder. A file is written to the cache folder
only. The baked folder holds bytecode and pickles. Somebody who can change these files could run code as the
user of a start, so the baked folder is used only if nobody else can change it. docs/operations.md lists what
is kept, and when it becomes invalid.
"""

import functools
import json
import logging
import os
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any, Final, NamedTuple, TypeVar

from base.machine.file_stamps import MISSING, are_unchanged, read_stamp, store_stamps
from base.machine.files import MODE, nearest_existing, read_own, why_changeable, write_problem, write_whole
from envs.foreign import expand_home
from envs.registry import env

logger = logging.getLogger(__name__)

Value = TypeVar("Value")

CONVERTING: Final = threading.Lock()
"""Held while msgspec converts, because msgspec crashes if two threads meet a class at its first use."""

FIXED_PATH: Final = Path("/opt/vllm-cli/baked")
OFF: Final = "off"

MANIFEST: Final = "manifest.json"
CACHE: Final = "cache"
"""A cache folder in the form of VLLM_CACHE_ROOT, with this program's folder inside."""
INSPECTIONS: Final = "modelinfos"
"""The folder in vLLM's cache folder in which vLLM stores facts about model classes."""
COMPILED: Final = "compiled"
"""Archives of compiled models, in the form of a location (`startup.compiled_models.location`)."""
BYTECODE: Final = "bytecode"
"""A bytecode cache for PYTHONPYCACHEPREFIX. Missing if all packages come with their bytecode."""
PAGES: Final = "pages.json"
"""Lists the files that the start has read, and which parts of each file."""

PREFIX: Final = "PYTHONPYCACHEPREFIX"
DONT_WRITE: Final = "PYTHONDONTWRITEBYTECODE"
_MOST_LINKS: Final = 40
"""The most symbolic links that are followed on the way to one file. The kernel has the same limit."""


class BakedFolder(NamedTuple):
    """The baked folder, or the reason why none is used."""

    folder: Path | None = None
    problem: str | None = None
    """Why a folder that exists, or that the user has named, is not used. None in all other cases."""


def find_baked() -> BakedFolder:
    """Looks for the folder that VCLI_BAKED names, or else for the folder at `FIXED_PATH`."""
    named = env.VCLI_BAKED.get()
    if named == OFF:
        return BakedFolder()
    folder = Path(expand_home(named)) if named else FIXED_PATH
    return _examine(folder, os.geteuid(), is_named=named is not None)


def use_baked_bytecode() -> bool:
    """Makes this process and its later programs use baked bytecode. Returns whether they use it.

    A bytecode cache that is set already takes precedence. The baked folder has bytecode if the image's
    packages came without it. Python compares each bytecode file with its source. If the folder lacks a
    module, Python compiles the module in memory, since nothing may be written to the folder.
    """
    baked = find_baked().folder
    if baked is None or sys.pycache_prefix is not None or not (baked / BYTECODE).is_dir():
        return False
    sys.pycache_prefix = os.environ[PREFIX] = str(baked / BYTECODE)
    sys.dont_write_bytecode = True
    os.environ[DONT_WRITE] = "1"
    return True


@functools.cache
def _examine(folder: Path, user: int, *, is_named: bool) -> BakedFolder:
    if not (folder / MANIFEST).is_file():
        missing = f"{env.VCLI_BAKED.name}: {folder} has no {MANIFEST}, so it was not written by `vllm-cli bake`"
        return BakedFolder(problem=missing if is_named else None)
    problem = why_not_trusted(folder.absolute(), user, parts=(MANIFEST, CACHE, BYTECODE))
    folder = folder.resolve()
    return BakedFolder(folder) if problem is None else BakedFolder(problem=f"{problem}, so {folder} is not used")


def add_baked_inspections(session_folder: Path) -> None:
    """Copies the baked facts about model classes to vLLM's cache folder, if the cache folder lacks them.

    If the cache folder is not writable, vLLM uses a cache folder inside `session_folder` for this start.
    """
    baked = find_baked().folder
    if baked is None:
        return
    if write_problem(str(nearest_existing(env.VLLM_CACHE_ROOT.get()))) is not None:
        os.environ[env.VLLM_CACHE_ROOT.name] = str(session_folder / "cache")
    target = env.VLLM_CACHE_ROOT.get() / INSPECTIONS
    with suppress(OSError):
        target.mkdir(parents=True, exist_ok=True)
        for source in (baked / CACHE / INSPECTIONS).glob("*.json"):
            if not os.path.lexists(target / source.name):
                write_whole(target / source.name, source.read_text(encoding="utf-8"))


def why_not_trusted(folder: Path, user: int, *, parts: Iterable[str] = ()) -> str | None:
    """Why other users could change the folder's content. None if only root and this user can change it.

    Checks the folder, the given parts of it, all parent folders, and the symbolic links on the way. The
    owner of a link can change where it leads. A part that does not exist is skipped.

    Args:
        folder: an absolute path.
        user: the user who may write to the folder, besides root.
        parts: names in the folder.
    """
    links = list(_links(folder))
    for link in links:
        owner = link.lstat().st_uid
        if owner not in (0, user):
            return f"{link} belongs to another user ({owner})"
    folder = folder.resolve()
    own = (folder, *(folder / part for part in parts))
    above_links = (parent for link in links for parent in link.parents)
    for path in (*own, *folder.parents, *above_links):
        if (problem := _why_changeable(path, user, allows_sticky=path not in own)) is not None:
            return problem
    return None


def _links(path: Path) -> Iterator[Path]:
    """The symbolic links on the way to a file, including links to which these links point."""
    for _ in range(_MOST_LINKS):
        on_the_way = (*reversed(path.parents), path)
        link = next((each for each in on_the_way if each.is_symlink()), None)
        if link is None:
            break
        yield link
        path = link.parent / link.readlink() / path.relative_to(link)


def _why_changeable(path: Path, user: int, *, allows_sticky: bool = False) -> str | None:
    try:
        found = path.lstat()
    except FileNotFoundError:
        return None
    except OSError as err:
        return f"{path} cannot be examined ({err.strerror})"
    return why_changeable(found, path, user=user, allows_sticky=allows_sticky)


OWN: Final = "vllm_cli"


def cache_folder() -> Path:
    """This program's cache folder. It may not exist yet."""
    return env.VLLM_CACHE_ROOT.get() / OWN


def layers(name: str) -> tuple[Path, ...]:
    """The paths of a file or folder of the cache: the user's path, and the baked path if there is one."""
    own = cache_folder() / name
    baked = find_baked().folder
    return (own,) if baked is None else (own, baked / CACHE / OWN / name)


_MOST_FILES: Final = 200
"""The most values that one folder keeps. Older values are removed."""
HIDDEN: Final = ".hidden"
"""The ending of a file that hides a value from `CachedValue.take`."""


@dataclass(frozen=True)
class CachedValue:
    """A value that a start keeps for later starts, as JSON in a file of its own.

    The key names the subject of the value. Stamps and files are the sources of the value. `read` finds no
    value once a stamp or file has changed, or once the user's value is too old. A start that finds the value
    wrong replaces or removes the value. `read` tries the value in the user's cache folder first, then the
    baked value. It ignores a file that is damaged, that other users could change, or that another version of
    this package has written in another form.
    """

    folder: str
    key: object
    """Each key has its own value. Keys and stamps are compared by their `repr`."""
    stamps: object = None
    lasts_s: float | None = None
    """Seconds until the user's value expires. None: it does not expire. A baked value never expires."""

    @property
    def path(self) -> Path:
        return cache_folder() / self._name

    def read(self, convert: Callable[[Any], Value], *, is_own: bool = False) -> Value | None:
        """The value. None if there is no valid value.

        Args:
            convert: converts the JSON value. Raises ValueError, TypeError, LookupError or AttributeError if
                the JSON value does not have the expected form.
            is_own: whether to ignore the baked value.
        """
        paths = [self.path] if is_own else [*layers(self._name)]
        if self.lasts_s is not None and (self.age_s or 0.0) >= self.lasts_s:
            paths.remove(self.path)
        found = (_read(path, convert, self.stamps) for path in paths)
        return next((value for value in found if value is not None), None)

    def take(self, convert: Callable[[Any], Value]) -> Value | None:
        """Reads the value, and hides it from `take` until it is written again.

        Its use may make this start fail. A start that succeeds with it writes it again.
        """
        value = None if self._hidden.exists() else self.read(convert)
        self.hide()
        return value

    def hide(self) -> None:
        """Removes the user's value, and hides the baked one from `take`, until a value is written."""
        self.remove()
        with suppress(OSError):
            self._hidden.parent.mkdir(parents=True, exist_ok=True)
            self._hidden.touch(MODE)

    def write(self, value: object, files: Iterable[str] = ()) -> None:
        """Replaces the user's value. Does nothing where no file can be written.

        `value` consists of JSON types and was made from `files`. A change of one of these files makes it
        invalid.
        """
        path = self.path
        was_reported = read_stamp(path).size == 0
        content = {"stamps": digest(self.stamps), "files": store_stamps(files), "value": value}
        with suppress(OSError):
            path.parent.mkdir(parents=True, exist_ok=True)
            if path.is_file() or not path.exists():  # others, such as pipes, are not ours
                write_whole(path, json.dumps(content, separators=(",", ":")), mode=MODE)
                if (reason := why_changeable(path.lstat(), path)) is not None:  # as on NFS with root_squash
                    path.write_bytes(b"")  # marks that the user has been informed
                    log = logger.debug if was_reported else logger.warning
                    log("%s, so nothing is kept there: set %s", reason, env.VLLM_CACHE_ROOT.name)
                self._hidden.unlink(missing_ok=True)
            for old in _newest_first(path.parent)[_MOST_FILES:]:
                old.unlink(missing_ok=True)

    def remove(self) -> None:
        with suppress(OSError):
            self.path.unlink(missing_ok=True)

    @property
    def age_s(self) -> float | None:
        """Seconds between the file's time and this machine's clock. None if the user has no value."""
        stamp = read_stamp(self.path)
        return None if stamp == MISSING else abs(time.time() - stamp.mtime_ns / 1e9)

    @property
    def _hidden(self) -> Path:
        return self.path.with_suffix(HIDDEN)

    @property
    def _name(self) -> str:
        return f"{self.folder}/{digest(self.key)}.json"


def of_type(kind: type[Value]) -> Callable[[Any], Value]:
    """A function for `CachedValue.read`, which reads values of this type and checks each of their members."""

    def convert(content: Any) -> Value:
        import msgspec  # noqa: PLC0415 - many processes read nothing, or lists of names

        with CONVERTING:
            return msgspec.convert(content, kind)

    return convert


def read_all(folder: str, convert: Callable[[Any], Value]) -> Iterator[Value]:
    """Returns the values of all keys and stamps: first the user's, newest first, then the baked ones."""
    paths = [path for layer in layers(folder) for path in _newest_first(layer)]
    return (value for path in paths if (value := _read(path, convert)) is not None)


def digest(value: object) -> str:
    """A short hash of a text, or of the `repr` of any other object."""
    text = value if isinstance(value, str) else repr(value)
    return sha256(text.encode()).hexdigest()[:16]


def _read(path: Path, convert: Callable[[Any], Value], stamps: object = None) -> Value | None:
    try:
        content = json.loads(read_own(path))
        if (stamps is None or content["stamps"] == digest(stamps)) and are_unchanged(content["files"]):
            return convert(content["value"])
    except (OSError, ValueError, TypeError, LookupError, AttributeError, RecursionError) as err:
        is_changeable = isinstance(err, PermissionError) and err.errno is None and read_stamp(path).size > 0
        logger.log(logging.WARNING if is_changeable else logging.DEBUG, "%s: %s", path, err)
    return None


def _newest_first(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.json"), key=lambda path: read_stamp(path).mtime_ns, reverse=True)
