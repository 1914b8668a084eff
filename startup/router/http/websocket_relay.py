"""Passes the messages of a WebSocket on, in both directions."""

import asyncio

import aiohttp
from aiohttp import web

_WebSocket = web.WebSocketResponse | aiohttp.ClientWebSocketResponse


async def exchange(client: web.WebSocketResponse, server: aiohttp.ClientWebSocketResponse) -> None:
    """Passes messages on until one side closes the WebSocket, which then closes the other one."""
    tasks = {asyncio.create_task(_pump(client, server)), asyncio.create_task(_pump(server, client))}
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    await client.close()


async def _pump(source: _WebSocket, drain: _WebSocket) -> None:
    """Passes the messages of one direction on, the last one included."""
    while True:
        message = await source.receive()
        match message.type:
            case aiohttp.WSMsgType.TEXT:
                await drain.send_str(message.data)
            case aiohttp.WSMsgType.BINARY:
                await drain.send_bytes(message.data)
            case aiohttp.WSMsgType.PING:
                await drain.ping(message.data)
            case aiohttp.WSMsgType.PONG:
                await drain.pong(message.data)
            case aiohttp.WSMsgType.CLOSE:
                text = message.extra or ""
                await drain.close(code=message.data or aiohttp.WSCloseCode.OK, message=text.encode())
                return
            case _:
                await drain.close(code=aiohttp.WSCloseCode.GOING_AWAY, message=b"The other side has ended")
                return
