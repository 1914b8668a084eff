"""Loads an image's bytes from its URL: `data:`, `file:`, `http:` or `https:`."""

import asyncio
from collections.abc import Iterator
from concurrent.futures import Executor
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from stat import S_ISREG
from typing import NamedTuple
from urllib.parse import unquote, urlsplit

import pybase64

from server.terms.config import RendererConfig
from server.text.renderers.images.fetcher import MediaError, MediaFetcher, MediaTooLargeError, TakeRoom
from server.text.renderers.prompts import HeldBytes

MAX_PROMPT_BYTES = 256 << 20
"""The most bytes that all images of a prompt may have together."""


@contextmanager
def room_for_images(held: HeldBytes) -> Iterator[TakeRoom]:
    """Yields a function that counts the bytes of a prompt's images as held until the block ends."""
    num_bytes = 0

    def take_room(num_more: int) -> None:
        nonlocal num_bytes
        if num_bytes + num_more > MAX_PROMPT_BYTES:
            raise MediaError(f"the images of a prompt are larger than {MAX_PROMPT_BYTES} bytes together")
        held.add_bytes(num_more)
        num_bytes += num_more

    try:
        yield take_room
    finally:
        held.remove_bytes(num_bytes)


class MediaLoader:
    """Fetches images over HTTP on the event loop. Decodes `data:` URLs and reads files in `executor`."""

    def __init__(self, config: RendererConfig, executor: Executor) -> None:
        folder = config.allowed_local_media_path
        self._folder = None if folder is None else Path(folder).resolve()
        self._max_bytes = config.max_media_bytes
        self._fetcher = MediaFetcher(config)
        self._executor = executor

    async def load(self, url: str, take_room: TakeRoom) -> bytes:
        """Loads the bytes of an image, without checking that they are an image.

        Raises:
            MediaError: the URL is malformed or not allowed, or loading fails.
        """
        scheme, most = url[:5].lower(), self._max_bytes
        run_in_executor = partial(asyncio.get_running_loop().run_in_executor, self._executor)
        if scheme == "data:":
            take_room(min(len(url) * 3 // 4, most))
            return await run_in_executor(partial(decode_data_url, url, max_bytes=most))
        if scheme == "file:":
            file = await run_in_executor(find_file, url, self._folder)
            take_room(min(file.num_bytes, most))
            return await run_in_executor(partial(read_file, file.path, max_bytes=most))
        return await self._fetcher.fetch(url, take_room)


def decode_data_url(url: str, *, max_bytes: int) -> bytes:
    """Decodes a `data:` URL. The base64 must be padded, and must contain no blanks.

    Raises:
        MediaError: the URL is malformed, or its data are larger than `max_bytes`.
    """
    header, comma, payload = url[len("data:") :].partition(",")
    if not comma:
        raise MediaError("the data URL has no comma between its header and its data")
    if not header.lower().endswith(";base64"):
        raise MediaError(f"a data URL must be base64 (`data:image/png;base64,...`), got {header[:40]!r}")
    if len(payload) // 4 * 3 > max_bytes + 2:
        raise MediaTooLargeError(max_bytes)
    try:
        return pybase64.b64decode(payload, validate=True)  # runs without the GIL
    except ValueError as err:
        raise MediaError(f"the data URL is not valid base64: {err}") from err


class LocalFile(NamedTuple):
    """A local file that a request may read."""

    path: Path
    num_bytes: int


def find_file(url: str, folder: Path | None) -> LocalFile:
    """Finds the file that a `file:///...` URL names, below `folder`.

    `folder` is a real path. A symbolic link that leads out of it is rejected.

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
    # A missing file and one outside of the folder give the same error: clients must not probe for files.
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
    """Returns the file's bytes. Raises MediaError if they are more than `max_bytes`, or cannot be read."""
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
