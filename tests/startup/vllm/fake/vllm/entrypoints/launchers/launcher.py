"""Ends the HTTP server some time after the engine has died."""

import asyncio
from typing import Any

import uvicorn
from vllm.utils.network_utils import find_process_using_port

_INTERVAL_S = 1.0


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
