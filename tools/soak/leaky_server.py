"""A small, real HTTP server with the OpenAI API that rejects invalid requests and has the faults that its
flags demand; run as a script by the tests of the soak test."""

import argparse
import asyncio
import json
import logging
import os
import threading

from aiohttp import web

MAX_TOKENS = 1000


class LeakyServer:
    """Leaks memory, files and threads as its flags demand."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options = options
        self.num_completions = 0
        self.num_running = 0
        self.kept_bytes: list[bytearray] = []
        self.kept_files: list[int] = []

    def app(self) -> web.Application:
        app = web.Application(client_max_size=1 << 20)
        app.router.add_get("/health", self.health)
        app.router.add_get("/v1/models", self.models)
        app.router.add_get("/metrics", self.metrics)
        app.router.add_post("/v1/completions", self.complete)
        app.router.add_post("/v1/chat/completions", self.complete)
        return app

    async def health(self, request: web.Request) -> web.Response:
        is_unhealthy = self.options.unhealthy_after and self.num_completions > self.options.unhealthy_after
        return web.Response(status=500 if is_unhealthy else 200)

    async def models(self, request: web.Request) -> web.Response:
        return web.json_response({"data": [{"id": "leaky"}]})

    async def metrics(self, request: web.Request) -> web.Response:
        return web.Response(text=f"vllm:num_requests_running {self.num_running}\nvllm:num_requests_waiting 0\n")

    async def complete(self, request: web.Request) -> web.StreamResponse:
        try:
            body = await request.json()
            is_fine = 0 < body["max_tokens"] <= MAX_TOKENS and body["model"] == "leaky"
        except (ValueError, TypeError, KeyError, RecursionError):
            is_fine = False
        if not is_fine or "structured_outputs" in body:
            return web.json_response({"error": {"message": "no"}}, status=400)
        self.num_completions += 1
        self.leak()
        if self._is_turn(self.options.fails_every):
            return web.json_response({"error": {"message": "deliberate error"}}, status=500)
        self.num_running += 1
        try:
            await asyncio.sleep(0.002)
            return await self.stream(request) if body.get("stream") else web.json_response({"choices": []})
        finally:
            self.num_running -= not self.options.keeps_running

    def leak(self) -> None:
        options = self.options
        if options.leaks_bytes:
            self.kept_bytes.append(bytearray(os.urandom(options.leaks_bytes)))
        if options.leaks_files:
            self.kept_files.append(os.open(os.devnull, os.O_RDONLY))
        if options.leaks_threads and self._is_turn(options.leaks_threads):
            threading.Thread(target=threading.Event().wait, daemon=True).start()

    async def stream(self, request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        await response.write(b"data: " + json.dumps({"choices": [{"text": "a"}]}).encode() + b"\n\n")
        if self._is_turn(self.options.errors_every):
            await response.write(b'data: {"error": {"message": "deliberate error", "code": 500}}\n\n')
        if self._is_turn(self.options.aborts_every):
            assert request.transport is not None
            request.transport.abort()
            return response
        await response.write(b"data: [DONE]\n\n")
        return response

    def _is_turn(self, every: int | None) -> bool:
        return bool(every) and self.num_completions % every == 0


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--leaks-bytes", type=int, default=0, help="for each completion")
    parser.add_argument("--leaks-files", action="store_true")
    for name in ("leaks-threads", "fails-every", "errors-every", "aborts-every"):
        parser.add_argument(f"--{name}", type=int, help="every so many completions")
    parser.add_argument("--unhealthy-after", type=int)
    parser.add_argument("--keeps-running", action="store_true")
    options = parser.parse_args()
    logging.disable()
    web.run_app(LeakyServer(options).app(), host="127.0.0.1", port=options.port, print=None)


if __name__ == "__main__":
    main()
