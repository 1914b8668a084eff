"""Faults of any file of a model: a link to nowhere, a placeholder, other content than its name says, no JSON.

`file_problem`, `link_problem` and `lfs_problem` return a fault in words that follow the file's path, or None.
"""

import codecs
import errno
import json
import os
from collections.abc import Iterable, Iterator
from contextlib import suppress
from itertools import islice
from pathlib import Path
from typing import Any, Final, NamedTuple

from base.json_depth import JsonDepthError, check_depth, read_json
from base.wording import list_some

_LFS_MAGIC: Final = b"version https://git-lfs.github.com/spec/"
_READ_BYTES: Final = 1024
"""How much of a file is read. A pointer of Git LFS is shorter."""
_HEADER: Final = slice(8, 9)
"""Where the header of a safetensors file begins, with `{`."""
UNREADABLE: Final = "cannot be read: {}: give this user the right to read it"
_MOST_LEVELS: Final = 3
_MOST_SEARCHED: Final = 2000
"""How many levels, and how many files and folders, are searched for a model."""
_MAX_PARSED_BYTES: Final = 16_000_000
"""The largest file that is parsed, at 7 ms per MB. Only both ends of a larger file are checked."""
_PIECE_BYTES: Final = 1 << 16


def file_problem(path: Path) -> str | None:
    """Why the file is not what its name says. Reads its first bytes. None if there is no such file."""
    if not path.is_file():
        return link_problem(path)
    head = first_bytes(path)
    if problem := lfs_problem(path, head):
        return problem
    if path.suffix.lower() != ".safetensors" or head[_HEADER] == b"{":
        return None
    if not os.access(path, os.R_OK):
        return UNREADABLE.format(os.strerror(errno.EACCES))
    size = path.stat().st_size
    return f"is no safetensors file: it has {size} bytes and begins with {head[:8]!r}. Copy it again from its source"


def link_problem(path: Path) -> str | None:
    """The target of a link, if the target does not exist."""
    is_lost = path.is_symlink() and not path.exists()
    return f"is a link to {os.path.realpath(path)}, which does not exist: copy with cp -L" if is_lost else None


def lfs_problem(path: Path, head: bytes) -> str | None:
    """The size of the real file, if this one is a pointer of Git LFS. `head`: how this file begins."""
    if not head.startswith(_LFS_MAGIC):
        return None
    lines = head[:_READ_BYTES].decode(errors="replace").splitlines()
    size = next((line[5:] for line in lines if line.startswith("size ")), "?")
    return f"is a Git LFS pointer, not the file of {size} bytes: run `git lfs pull` in {path.parent}"


def first_problem(paths: Iterable[Path]) -> str | None:
    """The fault of the first file with one, as a whole sentence."""
    return next((f"{path} {problem}" for path in paths if (problem := file_problem(path))), None)


def places_near(path: Path, pattern: str) -> str:
    """A sentence with the folders near a folder or file that have such a file. Empty if there is none."""
    found = [str(folder) for folder in _folders_near(path) if any(folder.glob(pattern))]
    return f". There is {pattern} in {list_some(found)}" if found else ""


def _folders_near(path: Path) -> Iterator[Path]:
    """The folder above, then the folders below, nearest first."""
    yield path.parent
    waiting, num_left = [(path, _MOST_LEVELS)], _MOST_SEARCHED
    for folder, num_levels in waiting:
        with suppress(OSError), os.scandir(folder) as entries:
            for entry in islice(entries, num_left if num_levels else 0):
                num_left -= 1
                if entry.is_dir():
                    waiting.append((Path(entry.path), num_levels - 1))
                    yield Path(entry.path)


def first_bytes(path: Path, num_bytes: int = _READ_BYTES) -> bytes:
    """How the file begins. Empty if it cannot be read."""
    with suppress(OSError), path.open("rb") as opened:
        return opened.read(num_bytes)
    return b""


class JsonFile(NamedTuple):
    """A file's content, or its fault."""

    content: dict[str, Any]
    """The parsed object. Empty if the file is faulty, or too large to be parsed."""
    problem: str | None = None


def read_json_object(path: Path) -> JsonFile:
    """Reads the file. A fault of the file becomes `problem`, not an exception."""
    try:
        raw = path.read_bytes()
    except OSError as err:
        return JsonFile({}, f"{path} {link_problem(path) or f'cannot be read: {err.strerror}'}")
    if problem := lfs_problem(path, raw):
        return JsonFile({}, f"{path} {problem}")
    if len(raw) > _MAX_PARSED_BYTES:
        is_whole = raw.lstrip()[:1] == b"{" and raw.rstrip()[-1:] == b"}"
        return JsonFile({}, None if is_whole else f"{path} is truncated: its {len(raw)} bytes are not a JSON object")
    try:
        content = read_json(raw)
    except UnicodeDecodeError:
        return JsonFile({}, f"{path} is not JSON: it is not text")
    except json.JSONDecodeError as err:
        return JsonFile({}, f"{path} is not JSON: {err.msg} at line {err.lineno}, column {err.colno}")
    except JsonDepthError as err:
        return JsonFile({}, f"{path} is {err}")
    if not isinstance(content, dict):
        return JsonFile({}, f"{path} is not a JSON object")
    return JsonFile(content)


def json_problem(path: Path) -> str | None:
    """Returns the fault of a file. Takes a fifth of the time of `read_json_object`, which parses the file."""
    import msgspec  # noqa: PLC0415 - only the preflight needs it; other users of this module stay light

    with suppress(OSError, ValueError):
        raw = path.read_bytes()
        if raw[:1] == b"{" and len(raw) <= _MAX_PARSED_BYTES:
            check_depth(raw)
            msgspec.json.decode(raw, type=dict[str, msgspec.Raw])  # checks the syntax
            pieces = (raw[begin : begin + _PIECE_BYTES] for begin in range(0, len(raw), _PIECE_BYTES))
            for _ in codecs.iterdecode(pieces, "utf-8"):  # in pieces, to save memory
                pass
            return None
    return read_json_object(path).problem
