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
MOST_BYTES_TOGETHER: Final = 4 << 30
"""Of all bodies that are kept at a time."""
_PAUSE_S: Final = 60.0
"""How long a client may send nothing of its body."""
_MOST_IN_MEMORY: Final = 1 << 20
"""A longer body lies in an unlinked temporary file, and is read by threads."""
_READ_BACK_BYTES: Final = 256 << 10


class BodyError(Exception):
    """The body is not read to its end."""

    def __init__(self, status: int, message: str) -> None:
        """`status` of the answer."""
        super().__init__(message)
        self.status = status


class BodyRoom:
    """What all bodies take together."""

    def __init__(self) -> None:
        self.num_bytes = 0


class RequestBody:
    """One body; must be closed."""

    def __init__(self, room: BodyRoom) -> None:
        self._room = room
        self._file = tempfile.SpooledTemporaryFile(  # noqa: SIM115 - closed by close()
            max_size=_MOST_IN_MEMORY, prefix="vllm-cli-body-"
        )
        self.num_bytes = 0

    def check_length(self, announced: int) -> None:
        """Raises BodyError for a length that no body may have."""
        if announced > MOST_BYTES:
            raise BodyError(413, f"The request body is larger than {MOST_BYTES} bytes.")

    async def read(self, content: "StreamReader") -> None:
        """Reads all of it; raises BodyError."""
        try:
            while part := await self._read_part(content):
                self.num_bytes += len(part)
                self._room.num_bytes += len(part)
                self.check_length(self.num_bytes)
                if self._room.num_bytes > MOST_BYTES_TOGETHER:
                    raise BodyError(503, "The bodies of other requests take all room: try it again later.")
                if self._is_in_memory:
                    self._file.write(part)
                else:
                    await asyncio.to_thread(self._file.write, part)
        except TimeoutError:
            raise BodyError(408, f"Nothing of the request's body came for {_PAUSE_S:g} s.") from None
        except ConnectionError:
            raise
        except OSError as err:
            raise BodyError(503, f"The request's body cannot be kept: {err.strerror}.") from err

    async def _read_part(self, content: "StreamReader") -> bytes:
        async with asyncio.timeout(_PAUSE_S):
            return await content.readany()

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
            self._room.num_bytes += len(content) - self.num_bytes
            self.num_bytes = len(content)

        await asyncio.to_thread(run)

    def close(self) -> None:
        """Gives up what is kept."""
        self._room.num_bytes -= self.num_bytes
        self.num_bytes = 0
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
