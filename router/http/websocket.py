"""Passes the bytes of a WebSocket on in both directions, and follows its frames to end it."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from contextlib import asynccontextmanager, closing, suppress
from typing import Any, Final, NamedTuple

import aiohttp
from yarl import URL

from router.http.waiting import Patience
from server.http.transport.http_request import RawHeaders, Request

CONNECT_S: Final = 10.0
UPGRADE: Final = ((b"connection", b"Upgrade"), (b"upgrade", b"websocket"))
_PIECE_BYTES: Final = 64 << 10
_TURN_BYTES: Final = 4 << 10
"""What one turn of the event loop follows. Each two bytes may be a frame."""
_CLOSE: Final = 8
"""The code of a close frame. Codes of messages are smaller, those of PING and PONG larger."""
_OK, _GOING_AWAY, _SERVICE_RESTART = 1000, 1001, 1012
_OTHER_ENDED: Final = b"The other side has ended"
_ROOM_WANTED: Final = b"Others wait for this model's memory"


class ModelSocket(NamedTuple):
    """A connection to a model's server, and the head of its answer to the handshake."""

    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter
    status: int
    reason: str
    headers: RawHeaders


@asynccontextmanager
async def open_websocket(
    connector: aiohttp.BaseConnector, target: URL, headers: RawHeaders
) -> AsyncIterator[ModelSocket]:
    """Passes a handshake on. Raises OSError or EOFError if there is no answer, else ValueError."""
    async with asyncio.timeout(CONNECT_S):
        if isinstance(connector, aiohttp.UnixConnector):
            reader, writer = await asyncio.open_unix_connection(connector.path)
        else:
            tls = True if target.scheme == "https" else None
            reader, writer = await asyncio.open_connection(target.host, target.port, ssl=tls)
    with closing(writer):
        fields = [(b"host", target.raw_authority.encode()), *UPGRADE, *headers]
        lines = [f"GET {target.raw_path_qs} HTTP/1.1".encode(), *(b"%b: %b" % field for field in fields), b"", b""]
        writer.write(b"\r\n".join(lines))
        line, *answered = (await reader.readuntil(b"\r\n\r\n")).strip().split(b"\r\n")
        version, _, rest = line.partition(b" ")
        status, _, reason = rest.partition(b" ")
        if not version.startswith(b"HTTP/1.") or not status.isdigit():
            raise ValueError("its answer to the handshake is not HTTP/1.1")
        answer_headers: list[tuple[bytes, bytes]] = []
        for field in answered:
            name, _, value = field.partition(b":")
            answer_headers.append((name, value.strip()))
        yield ModelSocket(reader, writer, int(status), reason.decode("latin-1"), answer_headers)


async def relay_messages(
    client: Request, server: ModelSocket, is_room_wanted: Callable[[], bool], patience: Patience
) -> None:
    """Passes messages on until one side closes its WebSocket. Then waits until the other side closes, too.

    If both sides are silent while other models wait (`is_room_wanted`), the router closes both WebSockets.
    """
    writer = server.writer
    time = asyncio.get_running_loop().time
    last_s = time()

    def note_content() -> None:
        nonlocal last_s
        last_s = time()

    async def read_client() -> bytes:
        return b"".join(await client.read())

    async def write_server(data: bytes) -> None:
        await writer.drain()
        writer.write(data)

    to_server = Direction(read_client, write_server, is_masked=True)
    to_client = Direction(lambda: server.reader.read(_PIECE_BYTES), client.write, is_masked=False)
    tasks = {asyncio.create_task(each.run(note_content)) for each in (to_server, to_client)}
    try:
        while not (await asyncio.wait(tasks, timeout=patience.stall_s / 3, return_when=asyncio.FIRST_COMPLETED))[0]:
            if time() - last_s >= patience.stall_s and is_room_wanted():
                closes = (to_client.close(_SERVICE_RESTART, _ROOM_WANTED), to_server.close(_OK))
                tasks.update(map(asyncio.create_task, closes))
                break
        if (await asyncio.wait(tasks, timeout=patience.close_s))[1]:
            writer.transport.abort()
            client.abort()
        else:
            client.end()
    except asyncio.CancelledError:  # the client has disconnected
        if to_server.is_between:
            writer.write(_close_frame(_GOING_AWAY, _OTHER_ENDED, is_masked=True))
        raise
    finally:
        await _cancel(tasks)


async def _cancel(tasks: Iterable[asyncio.Task[Any]]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


class Direction:
    """One direction of a WebSocket."""

    def __init__(
        self,
        read: Callable[[], Awaitable[bytes]],
        write: Callable[[bytes], Awaitable[None]],
        *,
        is_masked: bool,
    ) -> None:
        """`write` waits until it may write, then writes all. `is_masked`: whether the target needs masks."""
        self._read = read
        self._write = write
        self._is_masked = is_masked
        self._is_closed = False  # whether the target has got a close frame
        self._has_ended = False  # whether the source has sent a close frame
        self._head = bytearray()
        self._code = 0
        self._num_left = 0  # bytes of the frame that have not come

    @property
    def is_between(self) -> bool:
        """Whether the target may get a close frame, because it has got whole frames and is not closed."""
        return not (self._is_closed or self._head or self._num_left)

    async def run(self, note_content: Callable[[], None]) -> None:
        """Passes frames on until the source's close frame. Sends one if the source ends without."""
        with suppress(OSError):
            while not self._has_ended and (data := await self._read()):
                for begin in range(0, len(data), _TURN_BYTES):
                    part = data[begin : begin + _TURN_BYTES]
                    if not self._is_closed:
                        await self._write(part)
                    if self._follow(part):
                        note_content()
                    await asyncio.sleep(0)
        self._is_closed |= self._has_ended
        await self.close(_GOING_AWAY, _OTHER_ENDED)

    async def close(self, code: int, reason: bytes = b"") -> None:
        """Sends a close frame to the target, unless it has got one, or only a part of a frame."""
        with suppress(OSError):
            await self._write(b"")  # waits until the target has got what was passed on before
            if self.is_between:
                self._is_closed = True
                await self._write(_close_frame(code, reason, is_masked=self._is_masked))

    def _follow(self, data: bytes) -> bool:
        """Finds frames in the next bytes. Returns whether a part of a message is in them."""
        at, has_content = 0, False
        while at < len(data):
            if self._num_left:
                num_bytes = min(self._num_left, len(data) - at)
                self._num_left -= num_bytes
                at += num_bytes
            else:
                self._head.append(data[at])
                at += 1
                if not self._ends_head():
                    continue
            has_content |= self._code < _CLOSE
            self._has_ended |= self._code == _CLOSE and not self._num_left
        return has_content

    def _ends_head(self) -> bool:
        """Whether the head of a frame is complete. Then reads it."""
        head = self._head
        if len(head) < 2:
            return False
        short = head[1] & 127
        num_more = {126: 2, 127: 8}.get(short, 0)
        if len(head) < 2 + num_more + 4 * (head[1] >> 7):
            return False
        self._code = head[0] & 15
        self._num_left = int.from_bytes(head[2 : 2 + num_more], "big") if num_more else short
        head.clear()
        return True


def _close_frame(code: int, reason: bytes, *, is_masked: bool) -> bytes:
    payload = code.to_bytes(2, "big") + reason
    if not is_masked:
        return bytes([128 | _CLOSE, len(payload)]) + payload
    return bytes([128 | _CLOSE, 128 | len(payload), 0, 0, 0, 0]) + payload  # this mask changes nothing
