"""Binds the port before the engine starts, serves once it is ready, and ends some time after it has died."""

import argparse
import asyncio
import contextlib
import importlib
import json
import os
import signal
import socket
from collections.abc import AsyncIterator, Iterator
from functools import partial
from typing import Any

import uvicorn
from prometheus_client import REGISTRY, CollectorRegistry, generate_latest, multiprocess
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route
from vllm import process_state
from vllm.config import EngineConfig, create_engine_config
from vllm.logger import read_config, set_process_name
from vllm.tracing import instrument
from vllm.utils.network_utils import find_process_using_port
from vllm.v1.engine.async_llm import AsyncLLM

IMPORTED_IN = os.getpid()
_INTERVAL_S = 1.0


class NoSignalServer(uvicorn.Server):
    """A server that does not handle signals."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


@instrument(span_name="API server setup")
def setup_server(args: argparse.Namespace, *, reuse_port: bool) -> socket.socket:
    if args.uds:
        sock = socket.socket(family=socket.AF_UNIX, type=socket.SOCK_STREAM)
        sock.bind(args.uds)
        return sock
    sock = socket.socket(family=socket.AF_INET, type=socket.SOCK_STREAM)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    if reuse_port:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    sock.bind((args.host or "", args.port))
    return sock


async def run_server(args: argparse.Namespace) -> None:
    def interrupt(*_: Any) -> None:
        raise KeyboardInterrupt("terminated")

    signal.signal(signal.SIGTERM, interrupt)
    sock = setup_server(args, reuse_port=False)
    client = AsyncLLM(create_engine_config(args))
    try:
        await serve_http(client, sock, args)
    finally:
        client.engine_core.shutdown()
        sock.close()


def run_api_server(sock: socket.socket, config: EngineConfig, engine_address: str, index: int) -> None:
    """Runs in a separate process."""
    asyncio.run(serve_http(AsyncLLM(config, client_addresses={"engine": engine_address}, client_index=index), sock))


async def serve_http(engine_client: AsyncLLM, sock: socket.socket, args: argparse.Namespace | None = None) -> None:
    tls = {"ssl_keyfile": args.ssl_keyfile, "ssl_certfile": args.ssl_certfile} if args else {}
    set_process_name("APIServer")
    log_config = read_config() or uvicorn.config.LOGGING_CONFIG
    app = build_app(engine_client, args)
    config = uvicorn.Config(app, log_level="info", log_config=log_config, **tls)
    config.load()
    server = app.state.server = NoSignalServer(config)
    loop = asyncio.get_running_loop()
    shutdown_event = asyncio.Event()

    async def handle_shutdown() -> None:
        await shutdown_event.wait()
        timeout = engine_client.vllm_config.shutdown_timeout
        await loop.run_in_executor(None, partial(engine_client.shutdown, timeout=timeout))
        server.should_exit = True

    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, shutdown_event.set)
    tasks = [loop.create_task(handle_shutdown()), loop.create_task(watchdog_loop(server, engine_client))]
    address = sock.getsockname()
    await server.serve(sockets=[sock])
    if shutdown_event.is_set() and sock.family == socket.AF_INET:
        report_port_user(address[1])
    for task in tasks:
        task.cancel()


def build_app(client: AsyncLLM, args: argparse.Namespace | None) -> Starlette:
    async def health(request: Request) -> Response:
        return Response()

    async def models(request: Request) -> Response:
        return JSONResponse({"data": [{"id": "fake"}]})

    async def complete(request: Request) -> Response:
        body = await request.json()
        if body.get("stream", False):
            return StreamingResponse(stream(body["prompt"], body["max_tokens"]), media_type="text/event-stream")
        return JSONResponse(await answer(body["prompt"]))

    async def answer(prompt: str) -> dict[str, Any]:
        text = await asyncio.to_thread(client.ask, {"what": "completion", "prompt": prompt})
        return {"choices": [{"text": text}]}

    async def stream(prompt: str, num_tokens: int) -> AsyncIterator[str]:
        for _ in range(num_tokens):
            yield f"data: {json.dumps(await answer(prompt))}\n\n"
            await asyncio.sleep(0.01)
        yield "data: [DONE]\n\n"

    async def state(request: Request) -> Response:
        answer = await asyncio.to_thread(client.ask, {"what": "state"})
        return JSONResponse({"server": process_state.describe(), **answer})

    routes = [
        Route("/health", health),
        Route("/metrics", metrics),
        Route("/v1/models", models),
        Route("/v1/completions", complete, methods=["POST"]),
        Route("/state", state),
    ]
    app = Starlette(routes=routes, exception_handlers=dict.fromkeys((EOFError, OSError), end_if_errored))
    app.state.args = args
    app.state.engine_client = client
    for middleware in args.middleware if args else ():
        module, name = middleware.rsplit(".", 1)
        app.add_middleware(getattr(importlib.import_module(module), name))
    return app


async def end_if_errored(request: Request, error: Exception) -> Response:
    terminate_if_errored(request.app.state.server, request.app.state.engine_client)
    return Response(str(error), 500)


async def metrics(request: Request) -> Response:
    registry = REGISTRY
    if "PROMETHEUS_MULTIPROC_DIR" in os.environ:
        registry = CollectorRegistry()
        multiprocess.MultiProcessCollector(registry)
    return Response(generate_latest(registry))


async def watchdog_loop(server: uvicorn.Server, engine: Any) -> None:
    while True:
        await asyncio.sleep(_INTERVAL_S)
        terminate_if_errored(server, engine)


def report_port_user(port: int) -> None:
    if (process := find_process_using_port(port)) is not None:
        print(f"port {port} is used by {process}", flush=True)


def terminate_if_errored(server: uvicorn.Server, engine: Any) -> None:
    if engine.errored:
        server.should_exit = True
