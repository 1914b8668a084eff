"""The body of a request, which is read whole before its model is known."""

import asyncio
import mmap
import tempfile
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING, Final

from startup.router.http.body_changes import change_form, change_json
from startup.router.http.requested_model import RequestedModel, boundary_of, find_in_form, find_in_json
from startup.router.model_entry import BodyChanges

if TYPE_CHECKING:
    from aiohttp import StreamReader

MOST_BYTES: Final = 256 << 20
"""Of a body. JSON is decoded without a pause: 4 GiB of base64 a second, 0.2 GiB of the costliest text."""
_MOST_IN_MEMORY: Final = 1 << 20
"""A longer body lies in an unlinked temporary file, and is read by threads."""
_READ_BACK_BYTES: Final = 256 << 10


class BodyTooLongError(Exception):
    """The body has more than `MOST_BYTES`."""


class RequestBody:
    """One body; must be closed."""

    def __init__(self) -> None:
        self._file = tempfile.SpooledTemporaryFile(  # noqa: SIM115 - closed by close()
            max_size=_MOST_IN_MEMORY, prefix="vllm-cli-body-"
        )
        self.num_bytes = 0

    async def read(self, content: "StreamReader") -> None:
        """Reads all of it.

        Raises:
            BodyTooLongError: it is longer than any body may be.
        """
        while part := await content.readany():
            self.num_bytes += len(part)
            if self.num_bytes > MOST_BYTES:
                raise BodyTooLongError
            if self._is_in_memory:
                self._file.write(part)
            else:
                await asyncio.to_thread(self._file.write, part)

    async def find_model(self, media_type: str) -> RequestedModel:
        """What the body requests."""
        boundary = boundary_of(media_type)
        if boundary is not None:
            return await asyncio.to_thread(self._find_in_form, boundary)
        if self._is_in_memory:
            return find_in_json(self._bytes())
        return await asyncio.to_thread(self._find_in_file)

    async def change(self, changes: BodyChanges, requested: RequestedModel, media_type: str) -> None:
        """Changes it before the model gets it."""
        boundary = boundary_of(media_type)

        def run() -> None:
            content = self._bytes()
            if boundary is not None:
                content = change_form(content, changes, boundary)
            else:
                content = change_json(content, changes, requested.name)
            self._file.seek(0)
            self._file.truncate()
            self._file.write(content)
            self.num_bytes = len(content)

        await asyncio.to_thread(run)

    def close(self) -> None:
        """Gives up what is kept."""
        self._file.close()

    def data(self) -> "bytes | AsyncIterator[bytes] | None":
        """What the session sends, as often as it is called; None if there is nothing."""
        if not self.num_bytes:
            return None
        return self._bytes() if self._is_in_memory else self._stream()

    @property
    def _is_in_memory(self) -> bool:
        return self.num_bytes <= _MOST_IN_MEMORY

    def _bytes(self) -> bytes:
        self._file.seek(0)
        return self._file.read()

    def _find_in_file(self) -> RequestedModel:
        self._file.flush()
        with mmap.mmap(self._file.fileno(), 0, access=mmap.ACCESS_READ) as body:
            return find_in_json(body)

    def _find_in_form(self, boundary: bytes) -> RequestedModel:
        self._file.seek(0)
        return find_in_form(self._file, boundary)

    async def _stream(self) -> AsyncIterator[bytes]:
        await asyncio.to_thread(self._file.seek, 0)
        while part := await asyncio.to_thread(self._file.read, _READ_BACK_BYTES):
            yield part
