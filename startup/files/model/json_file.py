"""Reads JSON files of a model's folder, and describes a faulty file in one line."""

import codecs
import json
from contextlib import suppress
from pathlib import Path
from typing import Any, Final, NamedTuple

from base.json_depth import JsonDepthError, check_depth, read_json
from startup.files.model.file_faults import lfs_problem, link_problem

_MAX_PARSED_BYTES: Final = 16_000_000
"""The largest file that is parsed, in bytes. Parsing takes about 7 ms per MB.

Only the first and the last character of a larger file are checked.
"""

_PIECE_BYTES: Final = 1 << 16


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
