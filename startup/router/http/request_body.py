"""The body of a request: its beginning, which is read to find the model, then the rest, which is passed on.

A beginning is kept in memory up to a megabyte, and in an unlinked temporary file beyond it, or as soon as the
beginnings of all waiting requests have reached a bound.
"""

import asyncio
import tempfile
from collections import deque
from collections.abc import AsyncIterator
from time import perf_counter
from typing import IO, TYPE_CHECKING, Final

from startup.router.http.model_scanner import SLICE_BYTES, ModelScanner

if TYPE_CHECKING:
    from aiohttp import StreamReader

MOST_SEARCHED_BYTES: Final = 64 << 20
"""`model` must come within this part of a body."""
_FIRST_BYTES: Final = 256 << 10
"""What is read even if the model was found before: `stream` may come behind it."""
_MOST_IN_MEMORY: Final = 1 << 20
_MOST_IN_ALL: Final = 64 << 20
"""Beginnings in memory, of all requests together."""
_READ_BACK_BYTES: Final = 256 << 10
_TURN_S: Final = 0.002
"""How long a body may be scanned before the event loop has its turn."""


class BodyTooLongError(Exception):
    """The part that is searched for `model` has ended."""


class HeldBytes:
    """Counts the bytes of all beginnings that are in memory."""

    def __init__(self, most: int = _MOST_IN_ALL) -> None:
        self._left = most

    def take(self, num_bytes: int) -> bool:
        """Counts further bytes if there is room for them."""
        if num_bytes > self._left:
            return False
        self._left -= num_bytes
        return True

    def give_back(self, num_bytes: int) -> None:
        """The bytes have left memory."""
        self._left += num_bytes


class RequestBody:
    """One body; must be closed."""

    def __init__(self, content: "StreamReader", held: HeldBytes) -> None:
        self._content = content
        self._held = held
        self._parts: deque[bytes] = deque()
        self._num_held = 0
        self._file: IO[bytes] | None = None
        self._num_read = 0
        self.is_whole = False
        """Whether all of the body was read."""
        self.error: Exception | None = None
        """Why the client's body cannot be read to its end."""

    async def find_model(self, scanner: ModelScanner, *, is_needed: bool = True) -> None:
        """Reads until the scanner has found the model, or has seen all of the body.

        If the model is not needed, only the first part of the body is read.

        Raises:
            BodyTooLongError: the model does not come within the part that is searched.
        """
        while not self.is_whole:
            if self._num_read >= _FIRST_BYTES and (scanner.model is not None or not is_needed):
                return
            if scanner.is_complete and (scanner.is_invalid or self._num_read >= _FIRST_BYTES):
                return
            if self._num_read >= MOST_SEARCHED_BYTES:
                raise BodyTooLongError
            part = await self._content.readany()
            self.is_whole = self._content.is_eof()
            if part:
                await self._keep(part)
                await _scan(scanner, part)

    def close(self) -> None:
        """Gives up what is kept."""
        self._release_memory()
        if self._file is not None:
            self._file.close()

    def data(self) -> "bytes | AsyncIterator[bytes] | None":
        """What the session sends: bytes if all are in memory, else an iterator; None without a body."""
        if self.is_whole and self._file is None:
            return b"".join(self._parts) if self._parts else None
        return self._stream()

    async def _stream(self) -> AsyncIterator[bytes]:
        if self._file is not None:
            await asyncio.to_thread(self._file.seek, 0)
            while part := await asyncio.to_thread(self._file.read, _READ_BACK_BYTES):
                yield part
        else:
            for part in tuple(self._parts):
                yield part
        if self.is_whole:
            return
        self.close()
        try:
            while part := await self._content.readany():
                yield part
        except Exception as err:
            self.error = err
            raise

    async def _keep(self, part: bytes) -> None:
        self._num_read += len(part)
        if self._file is None:
            if self._num_read <= _MOST_IN_MEMORY and self._held.take(len(part)):
                self._parts.append(part)
                self._num_held += len(part)
                return
            self._file = tempfile.TemporaryFile(prefix="vllm-cli-body-")  # noqa: SIM115 - closed by close()
            parts = b"".join(self._parts)
            self._release_memory()
            await asyncio.to_thread(self._file.write, parts)
        await asyncio.to_thread(self._file.write, part)

    def _release_memory(self) -> None:
        self._held.give_back(self._num_held)
        self._num_held = 0
        self._parts.clear()


async def _scan(scanner: ModelScanner, part: bytes) -> None:
    """Scans a part in slices, and lets the event loop run in between."""
    if len(part) <= SLICE_BYTES:
        scanner.feed(part)
        return
    begin_s = perf_counter()
    for position in range(0, len(part), SLICE_BYTES):
        scanner.feed(part[position : position + SLICE_BYTES])
        if scanner.is_complete:
            return
        if perf_counter() - begin_s > _TURN_S:
            await asyncio.sleep(0)
            begin_s = perf_counter()
