"""Bodies reach the application complete, and their pieces without a copy; on real sockets."""

from typing import Any

import pytest

from server.limits import LimitsConfig
from server.transport.connection import BoundedConnection
from tests.server.transport.served import serve

HEAD = b"POST / HTTP/1.1\r\nhost: x\r\nconnection: close\r\n"
LONG = bytes(range(256)) * 8192
"""Two megabytes: more than a socket passes on at once, and than uvicorn accepts before a request reads it."""


class BodyReader:
    """Answers with the number of bytes and keeps the pieces."""

    def __init__(self) -> None:
        self.pieces: list[bytes] = []

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        has_more = True
        while has_more:
            message = await receive()
            self.pieces.append(message["body"])
            has_more = message["more_body"]
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"0")]})
        await send({"type": "http.response.body", "body": b""})


def chunk(data: bytes) -> bytes:
    return b"%x\r\n%s\r\n" % (len(data), data)


@pytest.mark.parametrize(
    ("framing", "body"),
    [
        pytest.param(b"content-length: 2097152\r\n\r\n" + LONG, LONG, id="long"),
        pytest.param(b"content-length: 3\r\n\r\nabc", b"abc", id="short"),
        pytest.param(b"content-length: 0\r\n\r\n", b"", id="empty"),
        pytest.param(
            b"transfer-encoding: chunked\r\n\r\n" + b"".join(map(chunk, (b"a", b"bc", LONG, b"d", b""))),
            b"abc" + LONG + b"d",
            id="chunks",
        ),
    ],
)
async def test_a_body_is_complete(framing, body):
    reader = BodyReader()
    async with serve(LimitsConfig(), application=reader) as served:
        assert (await served.exchange(HEAD + framing, tls=False)).startswith(b"HTTP/1.1 200")
    assert b"".join(reader.pieces) == body


async def test_pieces_of_a_body_are_not_copied(monkeypatch):
    parsed: list[bytes] = []
    on_body = BoundedConnection.on_body

    def keep(connection: BoundedConnection, body: bytes) -> None:
        parsed.append(body)
        on_body(connection, body)

    monkeypatch.setattr(BoundedConnection, "on_body", keep)
    reader = BodyReader()
    async with serve(LimitsConfig(), application=reader) as served:
        await served.exchange(HEAD + b"content-length: 2097152\r\n\r\n" + LONG, tls=False)
    same = [piece for piece in reader.pieces if any(piece is each for each in parsed)]
    assert sum(map(len, same)) > len(LONG) / 2  # pieces that arrive before the request reads are joined
