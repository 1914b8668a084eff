"""A small HTTP server with the OpenAI API and known delays; run as a script by the tests."""

import argparse
import asyncio
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from aiohttp import web

MAX_BYTES = 64 << 20
STUBBORN_CHILD = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(600)"


class TinyServer:
    """Answers every prompt with the requested number of words, at a fixed rate."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options = options
        self.bodies: list[dict] = []
        self.num_running = self.max_running = 0

    def app(self) -> web.Application:
        app = web.Application(client_max_size=MAX_BYTES)
        app.router.add_get("/v1/models", self.models)
        app.router.add_get("/health", self.health)
        app.router.add_get("/version", self.version)
        app.router.add_get("/seen", self.seen)
        app.router.add_post("/v1/completions", self.complete)
        app.router.add_post("/v1/chat/completions", self.complete)
        return app

    async def models(self, request: web.Request) -> web.Response:
        names = [] if self.options.lists_no_model else ["tiny"]
        return web.json_response({"data": [{"id": name} for name in names]})

    async def health(self, request: web.Request) -> web.Response:
        return web.Response()

    async def version(self, request: web.Request) -> web.Response:
        return web.json_response({"version": "1.2.3"})

    async def seen(self, request: web.Request) -> web.Response:
        return web.json_response({"bodies": self.bodies, "max_running": self.max_running})

    async def complete(self, request: web.Request) -> web.StreamResponse:
        body = await self.read(request)
        if body["model"] != "tiny":
            return web.json_response({"error": {"message": f"no model {body['model']}"}}, status=404)
        if rejected := set(body) & set(self.options.rejects):
            return web.json_response({"detail": f"Unexpected fields: {rejected}"}, status=422)
        if self.options.fails_every and len(self.bodies) % self.options.fails_every == 0:
            return web.json_response({"error": {"message": "deliberate error"}}, status=400)
        if self.options.exits_after and len(self.bodies) > self.options.exits_after:
            os._exit(9)
        self.num_running += 1
        self.max_running = max(self.max_running, self.num_running)
        try:
            return await self.stream(request, body)
        finally:
            self.num_running -= 1

    async def read(self, request: web.Request) -> dict:
        """Reads the body and blocks the event loop, like a server that prepares requests on it."""
        body = await request.json()
        self.bodies.append(body)
        time.sleep(self.options.blocks_ms / 1000)
        return body

    async def stream(self, request: web.Request, body: dict) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        is_chat = "messages" in body
        if is_chat:
            await self.send(response, {"choices": [{"delta": {"role": "assistant", "content": ""}}]})
        num_tokens = self.num_tokens(body)
        for index in range(num_tokens):
            await asyncio.sleep((self.options.gap_ms if index else self.options.first_ms) / 1000)
            text = {"delta": {"content": " word"}} if is_chat else {"text": " word"}
            await self.send(response, {"choices": [text]})
        if self.options.aborts_streams:
            assert request.transport is not None
            request.transport.abort()
            return response
        await self.send(response, {"choices": [{"text": "", "finish_reason": "length"}]})
        if body.get("stream_options"):
            await self.send(response, {"choices": []} | self.usage(num_tokens))
        await response.write(b"data: [DONE]\n\n")
        return response

    async def send(self, response: web.StreamResponse, chunk: dict) -> None:
        await response.write(b"data: " + json.dumps(chunk).encode() + b"\n\n")

    def num_tokens(self, body: dict) -> int:
        limit = self.options.stops_after
        return min(body["max_tokens"], limit) if limit and not body.get("ignore_eos") else body["max_tokens"]

    def usage(self, num_tokens: int) -> dict:
        counted = {"prompt_tokens": 10, "completion_tokens": num_tokens * self.options.tokens_per_chunk}
        return {} if self.options.counts_nothing else {"usage": counted}


def parse_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--first-ms", type=float, default=0)
    parser.add_argument("--gap-ms", type=float, default=0)
    parser.add_argument("--blocks-ms", type=float, default=0, help="how long each request blocks the event loop")
    parser.add_argument("--tokens-per-chunk", type=int, default=1)
    parser.add_argument("--stops-after", type=int)
    parser.add_argument("--fails-every", type=int)
    parser.add_argument("--exits-after", type=int)
    parser.add_argument("--rejects", nargs="*", default=[])
    parser.add_argument("--lists-no-model", action="store_true")
    parser.add_argument("--counts-nothing", action="store_true")
    parser.add_argument("--aborts-streams", action="store_true")
    parser.add_argument("--crashes", action="store_true")
    parser.add_argument("--ignores-sigterm", action="store_true")
    parser.add_argument("--pid-file", type=Path)
    return parser.parse_args()


def main() -> None:
    options = parse_options()
    if options.crashes:
        sys.exit("the tiny server crashes")
    if options.ignores_sigterm:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    if options.pid_file:
        child = subprocess.Popen([sys.executable, "-S", "-c", STUBBORN_CHILD], start_new_session=True)
        options.pid_file.write_text(f"{os.getpid()} {child.pid}")
    app = TinyServer(options).app()
    web.run_app(app, host="127.0.0.1", port=options.port, print=None, handle_signals=not options.ignores_sigterm)


if __name__ == "__main__":
    main()
