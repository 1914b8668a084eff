"""`python echo_server.py PORT`: describes what POST has sent; returns messages of a WebSocket."""

import hashlib
import sys

from aiohttp import web


async def tell_ready(request: web.Request) -> web.StreamResponse:
    return web.Response()


async def echo(request: web.Request) -> web.StreamResponse:
    digest, size = hashlib.sha256(), 0
    async for part in request.content.iter_any():
        digest.update(part)
        size += len(part)
    return web.json_response(
        {"target": request.raw_path, "size": size, "sha256": digest.hexdigest(), "text": str(size)}
    )


async def talk(request: web.Request) -> web.StreamResponse:
    socket = web.WebSocketResponse()
    await socket.prepare(request)
    async for message in socket:
        await socket.send_str(message.data)
    return socket


if __name__ == "__main__":
    app = web.Application()
    app.router.add_get("/health", tell_ready)
    app.router.add_get("/v1/realtime", talk)
    app.router.add_post("/{path:.*}", echo)
    web.run_app(app, host="127.0.0.1", port=int(sys.argv[1]), print=None)
