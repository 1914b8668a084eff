"""The router orders a model to sleep and to wake, on a control socket like that of our servers."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from base.server_settings import control_socket
from router.child import server as server_module
from router.child.server import OwnServer, SleepError


@asynccontextmanager
async def _told(folder: Path, answer: bytes | None) -> AsyncIterator[tuple[OwnServer, list[Any]]]:
    """A server that sends this answer to each order, or sends none. Yields it with the received orders."""
    orders: list[Any] = []
    answering: list[Any] = []

    async def take(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        answering.append(asyncio.current_task())
        orders.append(json.loads(await reader.readline()))
        if answer is None:
            await reader.read()
        writer.write(answer or b"")
        writer.close()
        with suppress(OSError):
            await writer.wait_closed()

    own = OwnServer((), str(folder / "s"))
    listening = await asyncio.start_unix_server(take, control_socket(str(folder / "s")))
    try:
        async with listening:
            yield own, orders
    finally:
        await asyncio.gather(*answering)
        await own.connector.close()


async def test_an_order_is_one_line_each_way(tmp_path):
    async with _told(tmp_path, b'{"ok": true, "took_s": 0.41}\n') as (server, orders):
        await server.sleep(2)
        await server.wake(1 << 30)
    assert orders == [{"do": "sleep", "level": 2}, {"do": "wake"}]


@pytest.mark.parametrize(
    ("answer", "kind", "text"),
    [
        (b'{"ok": false, "error": "out of memory"}\n', "refused", "out of memory"),
        (b"", "error", "its server ended the connection"),
        (b"[]\n", "error", "its server ended the connection"),
        (b"no json\n", "error", "cannot be read"),
        (b"x" * 5000, "error", "cannot be read"),
        (None, "timeout", "no answer within 0 s"),
    ],
    ids=["refused", "end", "list", "text", "long", "silent"],
)
async def test_what_else_is_an_error_with_its_reason(answer, kind, text, tmp_path, monkeypatch):
    monkeypatch.setattr(server_module, "_SLEEP_S", 0.1 if answer is None else 60.0)
    async with _told(tmp_path, answer) as (server, _):
        with pytest.raises(SleepError, match=text) as raised:
            await server.sleep(1)
    assert raised.value.kind == kind


async def test_a_server_without_the_socket_takes_no_orders(tmp_path):
    server = OwnServer((), str(tmp_path / "s"))
    with pytest.raises(SleepError, match="no socket for it") as raised:
        await server.sleep(1)
    assert raised.value.kind == "refused"
    await server.connector.close()
