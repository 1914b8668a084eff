"""Reads an image from the server's file system, below the folder that the operator allows."""

from pathlib import Path
from stat import S_ISREG
from typing import NamedTuple
from urllib.parse import unquote, urlsplit

from server.renderers.images.errors import MediaError, MediaTooLargeError


class LocalFile(NamedTuple):
    """A file that may be read."""

    path: Path
    num_bytes: int


def find_file(url: str, folder: Path | None) -> LocalFile:
    """The file that a URL names.

    Args:
        url: `file:///...`.
        folder: real path of the folder; symbolic links that lead out of it are rejected.

    Raises:
        MediaError: the file is not below `folder`, or is not a file.
    """
    if folder is None:
        raise MediaError("local files are only read when the server runs with --allowed-local-media-path")
    path = _local_path(url)
    try:
        real = path.resolve(strict=True)
    except (OSError, RuntimeError, ValueError):
        real = None
    # The same error for a missing file and for one outside the folder: clients cannot probe for files.
    if real is None or folder not in real.parents:
        raise MediaError(f"there is no such file below --allowed-local-media-path: {str(path)[:200]!r}")
    try:
        found = real.stat()
    except OSError as err:
        raise MediaError(f"the file cannot be read: {err.strerror}") from err
    if not S_ISREG(found.st_mode):
        raise MediaError("the file URL does not name a regular file")
    return LocalFile(real, found.st_size)


def read_file(path: Path, *, max_bytes: int) -> bytes:
    """The bytes of the file.

    Raises:
        MediaError: it is larger than `max_bytes`, or cannot be read.
    """
    try:
        with path.open("rb") as file:
            data = file.read(max_bytes + 1)
    except OSError as err:
        raise MediaError(f"the file cannot be read: {err.strerror}") from err
    if len(data) > max_bytes:
        raise MediaTooLargeError(max_bytes)
    return data


def _local_path(url: str) -> Path:
    try:
        parts = urlsplit(url)
    except ValueError as err:
        raise MediaError(f"not a file URL: {err}") from err
    if parts.netloc not in ("", "localhost"):
        raise MediaError(f"a file URL must name no host (`file:///path`), got {parts.netloc[:100]!r}")
    return Path(unquote(parts.path))
